"""Which files a function of the user's is made of, and that each of them is part of what names a store."""

import shutil
import sys
from pathlib import Path

import pytest

from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.local_modules import local_modules
from data_tools.prepare import prepare

FILES = {
    "my_rows.py": "import json, numpy\nfrom my_parts import names\nfrom data_tools.errors import RowError\n"
    "def chat(row):\n    import my_late\n    return my_late.chat(row)\n",
    "my_parts/__init__.py": "",
    "my_parts/names.py": "from . import deep\nfrom .deep.things import Thing\n",
    "my_parts/deep/__init__.py": "import my_rows\n",
    "my_parts/deep/things.py": "Thing = 1\ntry:\n    import no_such\nexcept ImportError:\n    pass\n",
    "my_parts/unused.py": "",
    "my_late.py": "def chat(row):\n    return row\n",
    "my_other.py": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules, where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for module in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[module]
    return tmp_path


def test_a_function_is_the_local_modules_that_it_imports(folder: Path) -> None:
    parts = folder / "my_parts"
    expected = {
        "my_rows": folder / "my_rows.py",
        "my_late": folder / "my_late.py",
        "my_parts": parts / "__init__.py",
        "my_parts.names": parts / "names.py",
        "my_parts.deep": parts / "deep" / "__init__.py",
        "my_parts.deep.things": parts / "deep" / "things.py",
    }
    assert local_modules("my_rows:chat") == expected
    (parts / "names.py").write_text(f"{FILES['my_parts/names.py']}from .... import beyond\n", encoding="utf-8")
    (folder / "my_late.py").write_text("def chat(row) is no Python", encoding="utf-8")
    assert local_modules("my_rows:chat") == expected
    assert local_modules("my_parts.deep.things:Thing") == expected, "from the middle of a package"


def test_a_module_behind_a_function_is_part_of_the_fingerprint(folder: Path, chat_file: Path, tmp_path: Path) -> None:
    shutil.copy(chat_file, tmp_path / "chats.jsonl")
    values = {"sources": [{"path": "chats.jsonl", "function": "my_rows:chat"}], "tokenizer": {"vocab_size": 400}}
    config = DataConfig.model_validate(values)
    made = prepare(config, tmp_path / "tokens")
    (folder / "my_other.py").write_text("# nobody imports it")
    assert prepare(config, tmp_path / "tokens").fingerprint == made.fingerprint
    (folder / "my_parts" / "deep" / "things.py").write_text("Thing = 2\n")
    with pytest.raises(UserError, match=r"\(the module my_parts\.deep\.things of the source chats's function\)"):
        prepare(config, tmp_path / "tokens")
