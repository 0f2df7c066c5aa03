"""Files in another place: an object store by an fsspec URI, or a folder of another disk."""

import shutil
from pathlib import Path

from data_tools.files import is_remote, open_file_system, writing
from data_tools.store import atomically


class Elsewhere:
    """A folder in another place; what goes wrong there is one line that names the setting.

    Args:
        location: a URI such as `s3://bucket/runs`, or a path.
        setting: which setting says so.

    Raises:
        UserError: the library of the object store is not installed; later, that it refuses or cannot be reached.
    """

    def __init__(self, location: str, setting: str) -> None:
        self.location = location.rstrip("/")
        self._setting = setting
        self._is_folder = not is_remote(location.removeprefix("file://"))
        self._system, root = open_file_system(self.location, setting)
        self._root = root.rstrip("/")

    def names(self) -> list[str]:
        """All files, by their path from here."""
        with writing(self.location, self._setting):
            self._system.invalidate_cache()
            found: list[str] = self._system.find(self._root)
        return [path[len(self._root) + 1 :] for path in found]

    def read(self, name: str) -> bytes:
        """What a file has."""
        with writing(f"{self.location}/{name}", self._setting):
            content: bytes = self._system.cat_file(f"{self._root}/{name}")
        return content

    def put(self, file: Path, name: str) -> None:
        """Copy a file there, where it appears when it is whole; what was there is replaced."""
        with writing(f"{self.location}/{name}", self._setting):
            target = f"{self._root}/{name}"
            if not self._is_folder:
                self._system.put_file(str(file), target)
                return
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with atomically(Path(target)) as temporary:
                shutil.copyfile(file, temporary)

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(f"{self.location}/{name}", self._setting):
            self._system.get_file(f"{self._root}/{name}", str(file))

    def remove_file(self, name: str) -> None:
        """Delete a file, if there is one."""
        with writing(f"{self.location}/{name}", self._setting):
            self._system.invalidate_cache()
            if self._system.exists(f"{self._root}/{name}"):
                self._system.rm_file(f"{self._root}/{name}")

    def remove(self, folder: str, first: str) -> None:
        """Delete a folder, if there is one, of which one file must not be there without the others."""
        self.remove_file(f"{folder}/{first}")
        with writing(f"{self.location}/{folder}", self._setting):
            if self._system.exists(f"{self._root}/{folder}"):
                self._system.rm(f"{self._root}/{folder}", recursive=True)
