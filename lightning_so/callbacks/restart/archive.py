"""What is wrong with a file that has no manifest, judged by what torch.save writes."""

import zipfile
from pathlib import Path

import torch

#: Where the header of a record has its flags, of two bytes, before two of the method, which is 0.
FLAGS = 6


def damage(file: Path, contents: bool) -> str | None:
    """What is wrong with a file of torch.save, a zip archive.

    torch.load compares no checksums, and believes what the archive's directory says: a flipped bit becomes a weight, or
    a record that is taken for a folder and leaves its numbers as they lay in memory. What torch.save writes is narrow:
    records are stored as they are, and have no attributes. Anything else is damage.

    Args:
        file: The file.
        contents: Whether all of it is read, for the checksums of its records.

    Returns:
        In words; None if no fault was found.
    """
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            for record in archive.infolist():
                if record.external_attr or record.compress_type or record.compress_size != record.file_size:
                    return f"the directory's entry of {record.filename!r} is not what torch.save writes"
                # The record's own header says the same of how it is stored.
                raw.seek(record.header_offset + FLAGS)
                if int.from_bytes(raw.read(4), "little") != record.flag_bits:
                    return f"the header of {record.filename!r} is not what the directory says"
            damaged = archive.testzip() if contents else None
        if damaged is None and contents:
            # By torch's own reader, which sees other fields than zipfile does; nothing is unpickled.
            torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # zipfile raises nine kinds for one flipped bit, torch two
        return f"{error or type(error).__name__} ({file.stat().st_size} bytes)" if file.exists() else "it is not there"
    return f"the checksum of {damaged} is wrong" if damaged else None
