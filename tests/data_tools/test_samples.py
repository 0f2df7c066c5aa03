"""The embedded sample is large enough to learn from, and always the same."""

from data_tools.config import SourceConfig
from data_tools.formats import RowReader
from data_tools.samples import python_docs

READER = RowReader(SourceConfig(sample="python_docs", format="messages"))


def test_the_documentation_makes_thousands_of_chats_and_always_the_same() -> None:
    chats = list(python_docs())
    assert list(python_docs()) == chats
    assert 5_000 < len(chats) < 20_000
    assert len({str(chat) for chat in chats}) == len(chats)
    for chat in chats[::100]:
        READER.read({"messages": chat})
    by_question = {chat[0]["content"]: chat for chat in chats}
    join = next(chat for question, chat in by_question.items() if "`textwrap.dedent`" in question)
    assert join[1]["content"].startswith(
        "`textwrap.dedent` is a function of the module `textwrap`.\n\nRemove any common leading"
    )
    assert join[3]["content"] == "`textwrap.dedent` is called as `dedent(text)`."
