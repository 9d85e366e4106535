"""Mutations of whole files: of any bytes, of texts, and of what is inside formats with lengths and checksums."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable

Mutate = Callable[[bytes, random.Random], bytes]

PIECES = [
    *(b"\0", b"\xff" * 8, b"\x80\x02", b"\x7f" * 4, b"9" * 30, b"9" * 5000, b"-1", b"1e999", b"NaN", b"[" * 300),
    *(b'{"a":' * 200, b"&a [*a]", b"*a", b"- ", b": ", b"!!python/object:os.system ", b'"', b"'", b"\n", b",", b"\r\n"),
    *(b"\\ud800", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"null", b"true", b"[]", b"{}", b"\t", b"1" * 19, b"4294967295"),
]  # fmt: skip


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to four mutations of bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 4, 16, len(out)))]
        elif kind == 3:
            out[at:at] = rng.choice(PIECES)
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 8, 64, 512))]
        elif kind == 5 and len(out) >= at + 8:
            size = rng.choice((2, 4, 8))
            order = rng.choice(("little", "big"))
            value = rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            out[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, order)
        elif kind == 6:
            other = rng.randrange(len(out) + 1)
            out[at : at + 16] = out[other : other + 16]
    return bytes(out)


def token(data: bytes, rng: random.Random) -> bytes:
    """A word of a text put in the place of another: keys doubled, values of other kinds."""
    text = data.decode("utf-8", "surrogateescape")
    words: list[str] = []
    for char in text:
        if words and char.isalnum() == words[-1][-1].isalnum():
            words[-1] += char
        else:
            words.append(char)
    for _ in range(rng.randint(1, 3)):
        if words:
            at = rng.randrange(len(words))
            words[at] = rng.choice((rng.choice(words), rng.choice(PIECES).decode("utf-8", "surrogateescape"), ""))
    return "".join(words).encode("utf-8", "surrogateescape")


def text(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((flip, token))(data, rng)


def inside_npz(data: bytes, rng: random.Random) -> bytes:
    """Mutate an array inside the archive, so that checksums hold; or the archive itself."""
    if rng.random() < 0.4:
        return flip(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        which = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == which:
                head = content[:128]
                content = (
                    rng.choice((flip, token))(head, rng) + content[128:] if rng.random() < 0.8 else flip(content, rng)
                )
            new.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def inside_gzip(data: bytes, rng: random.Random) -> bytes:
    return (
        flip(data, rng)
        if rng.random() < 0.4
        else gzip.compress(flip(gzip.decompress(data)[:64], rng) + gzip.decompress(data)[64:])
    )


def inside_tensors(data: bytes, rng: random.Random) -> bytes:
    """Mutate the header and keep its length true; or anything."""
    if rng.random() < 0.4:
        return flip(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = text(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
