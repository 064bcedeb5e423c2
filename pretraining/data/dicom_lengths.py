"""DICOM files whose elements claim more bytes than the file has: GDCM takes the memory first, and looks then.

One damaged length can so take gigabytes, and several the machine's memory (seen with SimpleITK 2.5). What stands here
reads no more of DICOM (PS3.5, section 7.1) than where each element ends.
"""

import struct
from pathlib import Path
from typing import BinaryIO

_START = 132  # preamble and DICM
_FIRST_READ = 16 * 1024  # bytes; all that stands before the pixels of most files, which are read at every start
_MOST_READ = 256 * 1024  # where the pixels begin later, what lies behind is not looked at
_UNDEFINED = 0xFFFFFFFF
_LONG_FORM = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT_FORM = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"} | {
    *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US")
}
_META, _TRANSFER_SYNTAX, _PIXELS, _ITEMS = 0x0002, (0x0002, 0x0010), (0x7FE0, 0x0010), 0xFFFE
_IMPLICIT, _DEFLATED, _BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"


def damaged_element(file: Path) -> str | None:
    """The first element that would end after the file does, or is not where it belongs; None if there is none.

    Sequences are entered. Where the encoding cannot be followed, nothing more is said.

    Args:
        file: A file that begins as DICOM does.

    Returns:
        Its tag, as "(0028,0010)".
    """
    with file.open("rb") as stream:
        return _damaged_element(stream, file.stat().st_size)


def _damaged_element(stream: BinaryIO, size: int) -> str | None:
    head = stream.read(_FIRST_READ)
    at, order, syntax = _START, "<", b""
    while True:
        if len(head) < at + 12 and at < _MOST_READ:
            head += stream.read(_MOST_READ - len(head))
        if len(head) < at + 8:
            return None
        group, element = struct.unpack_from(f"{order}HH", head, at)
        if group != _META and syntax == _DEFLATED:
            return None
        if group != _META and syntax == _BIG_ENDIAN and order == "<":
            order = ">"
            continue
        kind, begin, length = b"", at + 8, struct.unpack_from(f"{order}I", head, at + 4)[0]
        if group == _META or (group != _ITEMS and syntax != _IMPLICIT):
            kind = head[at + 4 : at + 6]
            if kind in _SHORT_FORM:
                length = struct.unpack_from(f"{order}H", head, at + 6)[0]
            elif kind in _LONG_FORM:
                if at + 12 > len(head):
                    return None
                begin, length = at + 12, struct.unpack_from(f"{order}I", head, at + 8)[0]
            elif group % 2:
                return None  # private ones are written in many ways
            else:
                kind, syntax = b"", _IMPLICIT  # GDCM, too, goes on without types
        if length == _UNDEFINED and group != _META:
            if (group, element) == _PIXELS or kind == b"UN":
                return None
            length = 0  # what it holds comes next
        is_lost = at == _START and group != _META  # a file begins with the group that tells its encoding
        if is_lost or begin + length > size:
            return f"({group:04x},{element:04x})"
        if (group, element) == _TRANSFER_SYNTAX:
            syntax = head[begin : begin + length].rstrip(b"\0 ")
        at = begin if group == _ITEMS or kind == b"SQ" else begin + length
