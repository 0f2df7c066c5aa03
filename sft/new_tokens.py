"""Rows of embedding and output layer for the tokens of `data.special_tokens`.

    rows      0 … known-1          known … vocab_size-1       vocab_size …
              the tokenizer's      new: the mean of those     padding, where the model has it

A new row that is the mean of the others is near all of them and far from none: logits of known tokens stay what they
were, and the new token is as likely as the average one (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Random
rows would make it likelier than all others.
"""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def add_rows(model: PreTrainedModel, vocab_size: int, added: int) -> None:
    """Give the last `added` of `vocab_size` tokens rows that are the mean of the rows before them.

    The model must be whole: before ZeRO-3 splits it. Rows that the model has beyond `vocab_size` stay.
    """
    if not added:
        return
    if model.config.get_text_config().vocab_size < vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    known = vocab_size - added
    parameters = [embedding.weight, head.weight, getattr(head, "bias", None)]
    for parameter in {id(parameter): parameter for parameter in parameters if parameter is not None}.values():
        parameter[known:vocab_size] = parameter[:known].mean(0, dtype=torch.float32).to(parameter.dtype)
