"""MetaImage headers: what SimpleITK does not report of them, and where it reads on although voxels are missing.

Observed with SimpleITK 2.5 (ITK 5.4): if MetaIO finds no voxels, memory stays as it is and no error is raised. This
happens with compressed voxels that are damaged, too few, in several gzip streams, or of unknown size; with a list of
too few files; and with names that look like a pattern but are none, some of which end the process. Missing voxels that
are not compressed raise an error. What SimpleITK would misread raises `BadScan` here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pretraining.data.scan import BadScan

_MAX_HEADER_BYTES = 64 * 1024
_MAX_LIST_BYTES = 16 * 1024**2
# As MetaIO parses a line: key, "=" or ":", value, with blanks around them.
_LINE = r"^\s*(?:{key})[ \t]*[=:][=: \t]*{value}"
_DATA_FILE = re.compile(_LINE.format(key="ElementDataFile", value=r"([^\n]*)(?:\n|\Z)").encode(), re.MULTILINE)
_AS_ITK_WRITES = re.compile(r"(\w+) = (\S(?:.*\S)?)")
_HERE = ("LOCAL", "Local", "local")
_PATTERN = re.compile(r"[^\s%]*%0?\d*d[^\s%]*(?: \d+ \d+ 0*[1-9]\d*)?")
_TRUE = ("T", "t", "1")  # first letters
_TRUTH = {"True": True, "False": False}


@dataclass(frozen=True)
class MetaImageHeader:
    """A header as it is written."""

    text: str  # the lines before the one that names the file of the voxels
    data_file: str  # that file, as it is named there
    size: int  # bytes

    def has(self, *keys: str) -> bool:
        """Whether a line has one of these keys."""
        return self.value("|".join(keys)) is not None

    def value(self, key: str) -> str | None:
        """Value of a key, the last one if there are several, as in MetaIO."""
        values = re.findall(_LINE.format(key=key, value=r"([^\n]*)"), self.text, re.MULTILINE)
        return values[-1].strip() if values else None

    @property
    def is_compressed(self) -> bool:
        """Whether MetaIO considers the voxels compressed."""
        compressed, binary = self.value("CompressedData") or "", self.value("BinaryData") or "True"
        return compressed.startswith(_TRUE) and binary.startswith(_TRUE)

    @property
    def compressed_size(self) -> int:
        """Bytes of the compressed voxels; 0 if not stated."""
        digits = re.match(r"\d+", self.value("CompressedDataSize") or "")
        return int(digits[0]) if digits else 0

    def is_big_endian(self) -> bool | None:
        """Byte order of a header that is written exactly as ITK writes it; None for other headers."""
        lines = [_AS_ITK_WRITES.fullmatch(line) for line in self.text.removesuffix("\n").split("\n")]
        fields = {line[1]: line[2] for line in lines if line}
        orders = fields.keys() & {"BinaryDataByteOrderMSB", "ElementByteOrderMSB"}
        if len(fields) < len(lines) or len(orders) != 1 or "HeaderSize" in fields:
            return None
        if fields.get("BinaryData") != "True" or fields.get("CompressedData", "False") not in _TRUTH:
            return None
        return _TRUTH.get(fields[orders.pop()])


def read_header(file: Path) -> MetaImageHeader:
    """Read the lines of a header, each of which must have a key, and one must name the file of the voxels."""
    with file.open("rb") as stream:
        start = stream.read(_MAX_HEADER_BYTES)
    end = _DATA_FILE.search(start)
    if end is None:
        raise BadScan(f"{file.name} cannot be read: its MetaImage header has no line ElementDataFile")
    text = start[: end.start()].decode("latin-1")
    keyless = next((line for line in text.splitlines() if line.strip() and not re.search("[=:]", line)), None)
    if keyless is not None:
        shown = keyless.strip()[:60]
        raise BadScan(f"{file.name} cannot be read: its MetaImage header has a line without '=': {shown!r}")
    return MetaImageHeader(text, os.fsdecode(end[1]).strip(), end.end())


def locate_voxels(file: Path, header: MetaImageHeader, slices: int) -> tuple[Path, int, bool] | None:
    """The file of the voxels, the byte at which they start in it, and whether they are compressed.

    None if they are in several files, of which SimpleITK reads each.
    """
    name = header.data_file
    if name.startswith("LIST") or "%" in name:
        _require_all_files(file, header, slices)
        return None
    if name in _HERE:
        return file, header.size, header.is_compressed
    for data, is_compressed in ((file.parent / name, header.is_compressed), (file.parent / f"{name}.gz", True)):
        if os.path.isfile(data):  # MetaIO looks for both
            return data, 0, is_compressed
    raise BadScan(f"{file.name} has its voxels in {name}, which is not there")


def _require_all_files(file: Path, header: MetaImageHeader, slices: int) -> None:
    """Refuse patterns and lists of files for which SimpleITK neither reads every slice nor raises an error."""
    name = header.data_file
    if header.is_compressed:
        raise BadScan(f"{file.name} has compressed voxels in several files: write it again as one file")
    if name == "LIST":
        with file.open("rb") as stream:
            stream.seek(header.size)
            lines = stream.read(_MAX_LIST_BYTES).count(b"\n")
        if lines < slices:
            raise BadScan(f"{file.name} lists {lines} files for {slices} slices, each to end with a new line")
    elif not _PATTERN.fullmatch(name):
        raise BadScan(
            f"{file.name} has its voxels in {name}, which SimpleITK takes for a pattern of names and misreads: "
            "rename the file of voxels, and ElementDataFile in the header"
        )
