"""Writes crates/jinja/src/unicode/tables.rs: what Python's str knows of characters and Rust's does not.

    python3 make_unicode.py > ../../src/jinja/unicode/tables.rs
"""

import sys
import unicodedata

CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]


def ranges(holds):
    found = []
    for code in map(ord, filter(holds, CHARACTERS)):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def table(name, what, holds):
    print(f"\n/// Ranges of the characters for which `{what}` holds, both ends included.")
    print(f"pub(super) const {name}: &[(u32, u32)] = &[")
    line = "   "
    for first, last in ranges(holds):
        item = f" (0x{first:X}, 0x{last:X}),"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line)
    print("];")


def mapping(name, what, left, right):
    print(f"\n/// Characters whose `{what}` differ, with the former.")
    print(f"pub(super) const {name}: &[(u32, &str)] = &[")
    for c in CHARACTERS:
        if left(c) != right(c):
            text = "".join(f"\\u{{{ord(x):X}}}" for x in left(c))
            print(f'    (0x{ord(c):X}, "{text}"),')
    print("];")


print(f"//! Made by `tests/make_unicode.py`, from Unicode {unicodedata.unidata_version} of Python.")
print("#![cfg_attr(rustfmt, rustfmt_skip)]")
table("ALPHA", "isalpha()", str.isalpha)
table("DECIMAL", "isdecimal()", str.isdecimal)
table("DIGIT", "isdigit() and not isdecimal()", lambda c: c.isdigit() and not c.isdecimal())
table("NUMERIC", "isnumeric() and not isdigit()", lambda c: c.isnumeric() and not c.isdigit())
table("NOT_PRINTABLE", "not isprintable()", lambda c: not c.isprintable())
mapping("TITLE", "title()` and `upper()", str.title, str.upper)
mapping("FOLDED", "casefold()` and `lower()", str.casefold, str.lower)
