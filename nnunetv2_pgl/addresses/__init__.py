"""Encoder checkpoints by address: a repository of the Hugging Face Hub, or a file on a web server.

- ``hf://OWNER/NAME[@REVISION][/FILE]``, or the address of its page on https://huggingface.co;
- ``https://HOST/FILE``; ``http://`` only with a checksum, or on this machine;
- either may end with ``#sha256=HEX``, the checksum that the file must have.

An address is downloaded once into the cache of huggingface_hub. The file is verified at every use and then read like
any other: nothing in it is executed (`nnunetv2_pgl.checkpoint.load_checkpoint`).
"""

from nnunetv2_pgl.addresses.locate import Located, locate
from nnunetv2_pgl.addresses.parse import is_address, shown

__all__ = ["Located", "is_address", "locate", "shown"]
