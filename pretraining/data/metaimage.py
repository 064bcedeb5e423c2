"""MetaImage headers, as far as SimpleITK does not tell what is in them or reads on where voxels are missing.

Observed with SimpleITK 2.5 (ITK 5.4): where MetaIO finds no voxels, memory stays as it is and no error is raised. So it
goes with compressed voxels that are damaged, too few, in several gzip streams, or of no known size; with a list of too
few files; and with names that look like a pattern but are none, some of which end the process. Missing voxels that are
not compressed raise an error.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.data.scan import BadScan
from pretraining.data.voxels import Voxels

_MOST = 64 * 1024  # bytes of a header
_MOST_OF_LIST = 16 * 1024**2
# As MetaIO takes a line apart: key, "=" or ":", value, with blanks around them.
_LINE = r"^\s*(?:{key})[ \t]*[=:][=: \t]*{value}"
_DATA_FILE = re.compile(_LINE.format(key="ElementDataFile", value=r"([^\n]*)(?:\n|\Z)").encode(), re.MULTILINE)
_AS_ITK_WRITES = re.compile(r"(\w+) = (\S(?:.*\S)?)")
_HERE = ("LOCAL", "Local", "local")
_PATTERN = re.compile(r"[^\s%]*%0?\d*d[^\s%]*(?: \d+ \d+ 0*[1-9]\d*)?")
_TRUE = ("T", "t", "1")  # first letters
_TRUTH = {"True": True, "False": False}


@dataclass(frozen=True)
class MetaImageHeader:
    """A header as it is written.

    Attributes:
        text: The lines before that of the voxels' file.
        data_file: The file of the voxels as it is named there.
        size: Bytes of the header.
    """

    text: str
    data_file: str
    size: int

    def has(self, *keys: str) -> bool:
        """Whether a line has one of these keys."""
        return self.value("|".join(keys)) is not None

    def value(self, key: str) -> str | None:
        """Value of a key; MetaIO takes the last of several."""
        values = re.findall(_LINE.format(key=key, value=r"([^\n]*)"), self.text, re.MULTILINE)
        return values[-1].strip() if values else None

    @property
    def is_compressed(self) -> bool:
        """Whether MetaIO takes the voxels for compressed."""
        compressed, binary = self.value("CompressedData") or "", self.value("BinaryData") or "True"
        return compressed.startswith(_TRUE) and binary.startswith(_TRUE)

    @property
    def compressed_size(self) -> int:
        """Bytes of the compressed voxels; 0 where that is not told."""
        digits = re.match(r"\d*", self.value("CompressedDataSize") or "")
        return int(digits[0] or 0) if digits else 0

    def is_big_endian(self) -> bool | None:
        """Byte order of a header that is written as ITK writes it, to the letter; None if it is not."""
        lines = [_AS_ITK_WRITES.fullmatch(line) for line in self.text.removesuffix("\n").split("\n")]
        fields = {line[1]: line[2] for line in lines if line}
        orders = fields.keys() & {"BinaryDataByteOrderMSB", "ElementByteOrderMSB"}
        if len(fields) < len(lines) or len(orders) != 1 or "HeaderSize" in fields:
            return None
        if fields.get("BinaryData") != "True" or fields.get("CompressedData", "False") not in _TRUTH:
            return None
        return _TRUTH.get(fields[orders.pop()])


def read_header(file: Path) -> MetaImageHeader:
    """Read the lines of a header.

    Raises:
        BadScan: If none of them names the file of the voxels, or one is none that MetaIO reads as such.
    """
    with file.open("rb") as stream:
        start = stream.read(_MOST)
    end = _DATA_FILE.search(start)
    if end is None:
        raise BadScan(f"{file.name} cannot be read: its MetaImage header has no line ElementDataFile")
    text = start[: end.start()].decode("latin-1")
    odd = next((line for line in text.splitlines() if line.strip() and not re.search("[=:]", line)), None)
    if odd is not None:
        raise BadScan(f"{file.name} cannot be read: its MetaImage header has a line without '=': {odd.strip()[:60]!r}")
    return MetaImageHeader(text, os.fsdecode(end[1]).strip(), end.end())


def metaimage_voxels(file: Path) -> Voxels | None:
    """Where the voxels are; None if SimpleITK notices by itself when some are missing.

    Raises:
        BadScan: If the file of the voxels is not there, or SimpleITK would read something else instead of them.
    """
    header = read_header(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        dtype = sitk.GetArrayFromImage(sitk.Image([1, 1], reader.GetPixelID(), channels)).dtype
    except RuntimeError:
        return None  # it will be raised again by the reader
    count = int(np.prod(size, dtype=object)) * channels
    if header.data_file.startswith("LIST") or "%" in header.data_file:
        _require_all_files(file, header, size[-1])
        return None
    data, compressed, start = file.parent / header.data_file, header.is_compressed, 0
    if header.data_file in _HERE:
        data, start = file, header.size
    elif not os.path.isfile(data):
        data, compressed = Path(f"{data}.gz"), True  # MetaIO looks for it, too
        if not os.path.isfile(data):
            raise BadScan(f"{file.name} has its voxels in {header.data_file}, which is not there")
    big_endian = header.is_big_endian()
    if big_endian is not None:
        dtype = dtype.newbyteorder(">" if big_endian else "<")
    if not compressed:
        return None if big_endian is None else Voxels(data, dtype, count, start)
    there, announced = data.stat().st_size - start, header.compressed_size
    if big_endian is not None and announced == there:
        return Voxels(data, dtype, count, compressed_from=start)
    if header.has("HeaderSize") or (data == file and not announced):
        raise BadScan(
            f"{file.name} does not say where its compressed voxels lie (CompressedDataSize, HeaderSize) in the way "
            "that SimpleITK understands: write it anew without compression"
        )
    return Voxels(
        *(data, np.dtype(np.uint8), count * dtype.itemsize),
        compressed_from=start,
        compressed_size=announced or there,
        only_checked=True,
    )


def _require_all_files(file: Path, header: MetaImageHeader, slices: int) -> None:
    """Refuse the patterns and lists of files for which SimpleITK does not read every slice, or says so."""
    name = header.data_file
    if header.is_compressed:
        raise BadScan(f"{file.name} has compressed voxels in several files: write it anew as one file")
    if name == "LIST":
        with file.open("rb") as stream:
            stream.seek(header.size)
            lines = stream.read(_MOST_OF_LIST).count(b"\n")
        if lines < slices:
            raise BadScan(f"{file.name} lists {lines} files for {slices} slices, each to end with a new line")
    elif not _PATTERN.fullmatch(name):
        raise BadScan(
            f"{file.name} has its voxels in {name}, which SimpleITK takes for a pattern of names and does not read "
            "right: rename the file of voxels, and ElementDataFile in the header"
        )
