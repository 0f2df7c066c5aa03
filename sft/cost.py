"""What attention costs beside the rest of a model, so that plans can give ranks equal work."""

from transformers import PreTrainedModel


def attention_cost(model: PreTrainedModel) -> float:
    """The `a` of tokens + a · Σ length²: 6 · layers · width operations for a pair of tokens, 6 · parameters for one.

    Only the model's shapes count, so its weights may be missing.
    The parameters are those of the layers and the output layer; looking up an embedding costs nothing.
    """
    text = model.config.get_text_config()
    computing = {id(p): p.numel() for p in model.parameters() if p is not model.get_input_embeddings().weight}
    head = model.get_output_embeddings().weight
    computing[id(head)] = head.numel()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return float(text.num_hidden_layers * text.num_attention_heads * head_width / sum(computing.values()))
