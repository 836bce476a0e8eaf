"""Writes facts.json: what transformers' Jinja makes of expressions and templates.

    pip install "transformers==5.24.0" jinja2==3.1.6
    python make_facts.py

Each fact is a pair: a template, and its text or null where Python raises. `CONTEXT` is what all of them see.
Facts whose text no two runs share (addresses of objects, times) are left out.
"""

import copy
import itertools
import json
import re
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

CONTEXT = {
    "s": "Hello, World",
    "u": "Straße ÉCOLE ǆ ﬁ",
    "n": 7,
    "big": 9007199254740993,
    "f": 2.5,
    "tiny": 1e-7,
    "huge": 1e16,
    "t": True,
    "none_": None,
    "l": [3, 1, 2, 1],
    "words": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [True, None, 2.0], "Z": "é\"'"},
    "rows": [
        {"name": "x", "n": 2, "tags": ["p"]},
        {"name": "Y", "n": 1, "tags": []},
        {"name": "x", "n": 3},
    ],
    "text": "one two\n  three\tfour\r\n\nfive-six seven",
    "nested": {"a": {"b": {"c": [1, [2, [3]]]}}},
    "items": {"items": 5, "keys": 6},
    "e": "",
}

facts = {}


def add(template):
    if template in facts:
        return
    try:
        text = _compile_jinja_template(template).render(**copy.deepcopy(CONTEXT))
    except Exception:
        text = None
    if text is not None and re.search(r" at 0x[0-9a-f]+", text):
        return
    if text is not None and any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    facts[template] = text


def expression(source):
    add("{{ " + source + " }}")


def product(form, *values):
    for chosen in itertools.product(*values):
        expression(form.format(*chosen))


# Printing.
VALUES = [
    "0", "-0", "1", "-7", "10**20", "2**100", "1.0", "0.1", "-0.0", "1e5", "1e15", "1e16", "123456789012345680.0",
    "1.5e-4", "1e-5", "1.5e300", "1e400", "-1e400", "1e400 - 1e400", "0.1 + 0.2", "1/3", "100 * 1.1", "true", "none",
    "big", "huge", "tiny", "f", "s", "u", "l", "d", "rows", "nested", "missing", "[missing]", "()", "(1,)", "(1, 'a')",
    "{}", "[]", "{1: 2, 'a': none}", "{true: 1}", "{1: 'a', 1.0: 'b', true: 'c'}", "range(3)", "range(1, 9, 2)",
    "d.keys()", "d.values()", "d.items()", "{}.items()", "namespace(a=1, b='x')", "'it\\'s'", "['it\\'s']",
    "['\"']", "['\\'\"']", "['\\n\\t\\r\\\\']", "['\\x00\\x7f\\x80\\xad\\u200b\\ud7ff\\ue000\\U0001F600']", "['é', 'ß', '日本']",
    "'a' 'b'", "'\\/'", "'\\d\\w'", "'\\u00e9\\x41\\101'", "1_000", "0x1F", "0b11", "0o17", "1_0.5", "1e-5", "1E5",
    "true and 'x'", "0 or 'y'", "not missing", "not d", "'a' if t", "'a' if not t", "('a' if not t) is defined",
    "1 < 2 < 3", "1 < 3 < 2", "1 == 1.0 == true", "'a' < 'b'", "[1, 2] < [1, 3]", "(1, 2) < (1,)", "1 < 'a'", "none < 1",
    "missing == missing", "missing == none", "missing != 1", "missing < 1", "missing + 1", "missing.x", "missing['x']",
    "missing()", "missing|length", "missing|list", "missing|join", "missing|upper", "missing|default('z')",
    "missing|int", "missing|float", "missing|string", "missing|tojson", "missing ~ 'x'", "missing in [1]", "'x' in missing",
    "missing in 'abc'", "1 in 'abc'", "'b' in 'abc'", "'' in 'abc'", "1 in [1.0]", "true in [1]", "'a' in d", "1 in d",
    "[] in d", "'a' not in d", "3 in range(9)", "3 in d.values()", "('b', 1) in d.items()", "'b' in d.keys()",
    "d == {'Z': 'é\"\\'', 'a': [true, none, 2], 'b': 1}", "[1] == (1,)", "1 == '1'", "none == false", "0 == false",
    "'%s' == '%s'", "range(3) == range(0, 3)", "range(0) == range(2, 2)", "l.append", "l.append(1)", "l.sort()", "d.update({})",
    "d.pop('a')", "d.setdefault('q', 1)", "l.__class__", "l.__class__.__mro__", "''.__class__", "d.__len__", "s.__add__('x')",
    "d._x", "l.append is defined", "d.clear()", "d.popitem()", "l.copy()", "d.copy()", "d.fromkeys(['a'], 1)",
    "items.items", "items.items()", "items['items']", "items.keys()|list", "d.a", "d['a']", "d.nope", "d.a.b", "d.nope.x",
    "l.0", "l[0]", "l[-1]", "l[9]", "l['0']", "l[true]", "l[1.0]", "l.x", "s[0]", "s[-1]", "s[99]", "s.upper", "s['upper']()",
    "u[6]", "n.real", "n.imag", "f.real", "n.numerator", "n.bit_length()", "t.real", "f.is_integer()", "2.0.is_integer()",
    "n.x", "none_.x", "none_['x']", "none_()", "n()", "'a'()", "range(9)[2]", "range(9)[-1]", "range(9)[99]", "range(9).start",
    "range(9)[2:5]", "range(9).index(3)", "range(9).count(3)", "range(10**9)", "range(0)", "range(1, 2, 0)", "range('a')",
    "'a' * 3", "3 * 'a'", "'a' * -1", "'a' * 1.5", "[1] * 2", "(1,) * 2", "[1] + [2]", "(1,) + (2,)", "[1] + (2,)", "'a' + 1",
    "1 + 'a'", "'a' + none", "'a' ~ 1 ~ none ~ 1.0 ~ [1] ~ true", "true + true", "-true", "+t", "-'a'", "-l", "--1", "-n|abs",
    "7 // 2", "-7 // 2", "7 // -2", "7 % 3", "-7 % 3", "7 % -3", "7.5 // 2", "-7.5 % 2", "7 / 2", "8 / 2", "1 / 0", "1 // 0",
    "1 % 0", "1.0 / 0", "1.0 % 0", "2 ** 10", "2 ** -1", "2 ** 0.5", "0 ** 0", "0 ** -1", "2 ** 3 ** 2", "-2 ** 2",
    "1e308 * 10", "5 % 2.5", "-5.5 // 1", "0.0 // 1", "-0.0 % 1", "10**18 * 10", "1 - 1.0", "3 - '1'", "l - [1]", "d + d", "d * 2",
    "dict(a=1, b=2)", "dict([('a', 1)])", "dict(d, c=3)", "dict(1)", "dict([1])", "dict.fromkeys(['a'])", "dict({}, a=1)['a']",
    "namespace().x", "namespace(_x=1)", "namespace({'a': 1}).a", "cycler('a', 'b').next()", "cycler('a').current", "cycler()",
    "joiner('|')()", "joiner()() ~ 'x'", "range is callable", "raise_exception is callable", "strftime_now is defined",
    "dict is callable", "namespace is defined", "messages is defined", "x.y is defined", "d.x is defined", "d.a is defined",
    "raise_exception('no')", "[1, 2, 3,]", "{'a': 1,}", "(1, 2,)", "[d.b, *l]", "l[1:]", "l[:-1]", "l[::-1]", "l[::2]",
    "l[-2:]", "l[5:]", "l[2:1]", "l[::0]", "l[-99:99]", "l[3::-2]", "l[:1:-1]", "s[1:4]", "s[::-1]", "s[::3]", "s[-3:]",
    "u[::-1]", "u[2:7]", "u[-4:-1:2]", "d[1:]", "none_[1:]", "missing[1:]", "(1, 2, 3)[1:]", "l['a':]", "l[true:]", "l[:10**30]",
    "''.join(l)", "','.join(words)", "','.join('abc')", "','.join(d)", "','.join(5)", "''|e ~ '<'", "'<b>'|e", "'<b>'|e|e",
    "'<b>'|safe ~ '<'", "('<b>'|safe) + '<'", "'<' + ('<b>'|safe)", "'<b>'|forceescape", "('<b>'|safe)|forceescape",
    "'\"&\\''|escape", "5|e", "['<']|e", "'x'|safe is escaped", "'x' is escaped", "['x'|safe]",
]
for value in VALUES:
    expression(value)

# Methods of str.
TEXTS = ["s", "u", "text", "''", "'abc'", "'  ab '", "'a,b,,c'", "'İIıi'", "'ΑΣ ΣΑ'", "'they\\'re 3rd x-y'", "'٣४²½Ⅷ'", "'\\x1c a\\u2003'"]
for method in (
    "capitalize casefold isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
    "isupper lower lstrip rstrip split rsplit splitlines strip swapcase title upper expandtabs"
).split():
    product("{}.{}()", TEXTS, [method])
    expression(f"'abc'.{method}(1, 2, 3, 4)")
for text in ["'A'", "'a'", "'1'", "'_a1'", "'1a'", "'ǅ'", "'ª'", "'²'", "'½'", "'\\u00a0'", "'A1'", "'Ab'", "'Ab Cd'", "'ab'", "'-'", "'a-'", "'é'"]:
    for method in "alnum alpha ascii decimal digit identifier lower numeric printable space title upper".split():
        expression(f"{text}.is{method}()")
WANTED = ["'l'", "'o'", "''", "'zz'", "1"]
BOUNDS = ["", ", 3", ", -3", ", 2, 6", ", 99", ", none, 5", ", 5, 2", ", -99, 99"]
for method in "count find rfind index rindex startswith endswith".split():
    product("s.{}({}{})", [method], WANTED, BOUNDS)
    product("u.{}({}{})", [method], ["'ß'", "'É'"], BOUNDS[:4])
for method in ["startswith", "endswith"]:
    product("s.{}({})", [method], ["('x', 'H')", "('d',)", "()", "['H']", "(1,)", "none"])
for method in ["split", "rsplit"]:
    product(
        "'a b  c d'.{}({})", [method],
        ["' '", "'  '", "none", "none, 1", "none, 0", "' ', 1", "' ', 2", "' ', 0", "sep=' '", "maxsplit=1", "sep=none, maxsplit=2",
         "sep=' ', maxsplit=1", "''", "1", "' ', none", "' ', -1", "'b', maxsplit=1", "' ', sep=' '", "nope=1"],
    )
product("text.splitlines({})", ["true", "false", "keepends=true", "1"])
product("'a\\x0bb\\x0cc\\x1cd\\x85e\\u2028f\\r\\rg'.splitlines({})", ["", "true"])
product("{}.{}({})", ["s", "'xxhixx'", "'aXbXc'"], ["partition", "rpartition", "removeprefix", "removesuffix"], ["'x'", "', '", "'X'", "'zz'", "''", "1", "", "'Hello'", "'World'"])
product("{}.{}({})", ["'xxhixx'", "'  hi  '", "'ßaß'"], ["strip", "lstrip", "rstrip"], ["'x'", "'xh'", "' h'", "none", "''", "'ß'", "1"])
product("s.replace({})", ["'l', 'L'", "'l', 'L', 1", "'l', 'L', 0", "'l', 'L', -1", "'', '-'", "'', '-', 3", "'l', ''", "'zz', 'y'", "'l'", "'l', 1", "'l', 'L', 1, 2"])
product("'{}'.{}({})", ["ab", "abc", "", "-5", "+x"], ["center", "ljust", "rjust", "zfill"], ["7", "8", "2", "-1", "7, '*'", "8, '*'", "7, 'ab'", "7, ''", "'7'", "", "7.0"])
product("'a\\tb\\n\\tc'.expandtabs({})", ["", "4", "0", "1", "-1", "tabsize=2"])
product("s.encode({})", ["", "'utf-8'", "'ascii'", "encoding='utf-8'"])
expression("u.encode()")
expression("u.encode('ascii')")
expression("u.encode().decode()")
product("'abc'.translate({})", ["{97: 'x'}", "{97: none, 98: 99}", "'abc'.maketrans('ab', 'xy')", "'abc'.maketrans('ab', 'xy', 'c')", "'abc'.maketrans({'a': 'zz'})", "{}", "'x'.maketrans('a', 'bc')"])
product("'{{a}}-{{b}}'.format_map({})", ["{'a': 1, 'b': 2}", "{'a': 1}", "{}", "1"])
for source, arguments in [
    ("{} {}", "1, 'a'"), ("{0} {1} {0}", "1, 2"), ("{a} {b}", "a=1, b='x'"), ("{}", ""), ("{1}", "1"), ("{x}", "a=1"), ("{{}}", ""),
    ("{{{}}}", "1"), ("{", "1"), ("}", "1"), ("{} {0}", "1"), ("{0} {}", "1"), ("{!r} {!s} {!a}", "'é', 'b', 'é'"), ("{0[a]} {0[b]}", "d"),
    ("{0.b}", "d"), ("{0[0]} {0[1]}", "l"), ("{0[9]}", "l"), ("{0.__class__}", "d"), ("{:>5}|{:<5}|{:^5}", "1, 'a', 'b'"),
    ("{:*^9}", "'mid'"), ("{:{}}", "'a', 5"), ("{:{w}.{p}f}", "3.14159, w=9, p=2"), ("{:05d} {:+d} {: d}", "42, 42, 42"), ("{:x} {:X} {:#x} {:o} {:b} {:#b} {:c}", "255, 255, 255, 8, 5, 5, 65"),
    ("{:,} {:_} {:,.2f}", "1234567, 1234567, 1234567.891"), ("{:e} {:.2e} {:E}", "12345.678, 0.00012, 1.5"), ("{:g} {:.3g} {:g} {:g}", "1e10, 0.00001234, 100000.0, 1000000.0"),
    ("{:.0f} {:.0f} {:.0f} {:.1f}", "0.5, 1.5, 2.5, 0.25"), ("{:%} {:.1%}", "0.256, 0.256"), ("{:f}", "huge"), ("{} {:d}", "true, true"), ("{:>6}", "true"), ("{:>6}", "none"),
    ("{:s}", "1"), ("{:d}", "'a'"), ("{:d}", "1.5"), ("{:.3}", "'abcdef'"), ("{:.3}", "3.14159"), ("{:.3}", "1234567.0"), ("{:10.3}|", "'abcdef'"), ("{:=+6d}", "3"), ("{:<06}", "3"), ("{:06}", "-3"),
    ("{:06}", "'a'"), ("{:010,}", "1234"), ("{:012,.1f}", "-1234.5"), ("{:z.0f}", "-0.2"), ("{:q}", "1"), ("{:5", "1"), ("{!x}", "1"), ("{:n}", "12"), ("{:>}", "1"), ("{: >4}", "1"), ("{:}", "l"), ("{:5}", "l"),
    ("{0!r:>6}", "'a'"), ("{a.b.c}", "a=nested.a"), ("{a[b][c][1]}", "a=nested.a"), ("{:_x}", "1048575"), ("{:.3d}", "1"), ("{:-^20}", "' hi '"), ("{:é>4}", "1"), ("{:1000000000000}", "1"), ("{:#.3g} {:#x}", "1.0, 10"),
]:
    expression(f"'{source}'.format({arguments})")

# '%' with values, and the filter that does the same.
for source in ["%s", "%r", "%a", "%d", "%i", "%5d|", "%-5d|", "%05d", "%+d", "% d", "%x", "%X", "%#x", "%o", "%#o", "%e", "%.2e", "%E", "%f", "%.1f", "%8.3f|", "%g", "%.3g", "%G", "%c", "%5s|", "%-5s|", "%.2s", "%%", "%5%", "%q", "%", "%.3d", "%+.1f", "%08.2f", "%u", "%ld", "%#.3g", "x"]:
    product("'" + source.replace("{", "{{") + "' % {}", ["1", "-42", "3.7", "'abc'", "true", "none", "l", "(1,)", "()", "'é'"])
for source, values in [
    ("%s %s", "(1, 2)"), ("%s %s", "(1,)"), ("%s", "(1, 2)"), ("%(a)s %(b)s", "{'a': 1, 'b': 2}"), ("%(a)s", "{'b': 1}"), ("%(a)s", "1"), ("%(a)05.1f", "{'a': 2.25}"), ("%*d", "(5, 42)"), ("%-*d|", "(5, 42)"), ("%.*f", "(2, 3.14159)"),
    ("%*d", "('a', 1)"), ("%s", "d"), ("%s", "missing"), ("x", "missing"), ("x", "{}"), ("x", "[]"), ("x", "1"), ("%d%%", "50"), ("%s and %r", "('a', 'a')"), ("%c%c", "(65, 'B')"), ("%c", "'ab'"), ("%c", "-1"), ("%d", "'1'"), ("%x", "1.5"), ("%d", "1e400"),
    ("%5.1f|%-8s|%03d", "(2.25, 'ab', 7)"), ("%1000000000000d", "1"), ("%.1000000000000f", "1"), ("%(a)s %(a)s", "dict(a=1)"), ("%(é)s", "{'é': 1}"), ("%s", "[(1,)]"),
]:
    expression(f"'{source}' % {values}")
for call in ["'%s-%s'|format(1, 2)", "'%(a)s'|format(a=1)", "'%s'|format(1, a=2)", "'%d'|format('x')", "'x'|format", "'%s'|format(l)", "5|format"]:
    expression(call)

# Methods of list and dict.
for call in ["l.count(1)", "l.count('x')", "l.index(2)", "l.index(9)", "l.index(1, 2)", "l.index(1, 2, 3)", "l.index(1, -1)", "(1, 2).count(1)", "(1, 2).index(2)", "d.get('a')", "d.get('x')", "d.get('x', 1)", "d.get('x', default=1)", "d.get()", "d.get([])",
             "d.keys()|list", "d.values()|list", "d.items()|list", "d.items()|length", "d.items()[0]", "d.items()|first", "d.keys()|join", "d|length", "d|list", "d|first", "d|last", "d.keys(1)", "d.items() is iterable", "d.items() is sequence", "d.items() is mapping", "d|items|list", "l|items|list", "missing|items|list"]:
    expression(call)

# Tests.
TESTED = ["1", "2", "-3", "1.5", "2.0", "true", "false", "none", "'a'", "'A'", "'1a'", "''", "l", "d", "(1,)", "missing", "range(3)", "range", "s.upper", "namespace()", "d.items()", "l|map('upper')", "'x'|safe", "joiner()", "cycler(1)"]
for test in "odd even defined undefined none boolean false true integer float lower upper string mapping number sequence iterable callable escaped filter test".split():
    product("{} is {}", TESTED, [test])
    product("{} is not {}", ["1", "missing"], [test])
for test in "eq == equalto ne != lt < lessthan le <= gt > greaterthan ge >= in sameas divisibleby".split():
    for a, b in [("1", "1"), ("1", "2"), ("'a'", "'b'"), ("1", "'a'"), ("none", "none"), ("1", "[1]"), ("4", "2"), ("4", "0"), ("true", "true"), ("l", "l"), ("true", "1"), ("1.0", "1"), ("4", "2.0")]:
        expression(f"[{a}]|select('{test}', {b})|list")
        if test.isalpha():
            expression(f"{a} is {test} {b}")
            expression(f"{a} is {test}({b})")
for call in ["1 is eq", "1 is eq(1, 2)", "1 is nope", "'upper' is filter", "'nope' is filter", "'odd' is test", "'==' is test", "1 is odd is even", "1 is not none and true", "missing is defined or 1", "1 is divisibleby 2 or true", "3 is in [3]", "3 is not in [3]", "'a' is in 'abc'", "1 is number and 1 is integer", "n is odd if t else 2", "d.a is sequence", "(1 if t) is number", "x is defined and x.y"]:
    expression(call)

# Filters.
FILTERED = ["s", "u", "text", "l", "words", "d", "rows", "n", "f", "none", "missing", "true", "'a b c'", "[]", "'42.9'", "' -7 '", "range(5)", "(3, 1)"]
for name in "abs capitalize center count default e escape first float forceescape int items join last length list lower max min pprint reverse round safe sort string striptags sum title trim unique upper urlencode wordcount wordwrap xmlattr tojson truncate indent dictsort filesizeformat format batch slice map select reject groupby attr replace selectattr rejectattr".split():
    product("{}|{}", FILTERED, [name])
    product("{}|{}|list", FILTERED, [name])
for call in [
    "l|batch(2)|list", "l|batch(3, 'x')|list", "l|slice(3)|list", "l|slice(3, 'x')|list", "l|slice(9)|list", "l|slice(0)|list", "l|batch(0)|list", "s|center(20)", "s|center(21)", "missing|d('x')", "''|d('x')", "''|d('x', true)", "none|default('x', boolean=true)", "0|default",
    "d|dictsort", "{'b': 1, 'A': 2}|dictsort", "{'b': 1, 'A': 2}|dictsort(true)", "{'b': 1, 'A': 2}|dictsort(false, 'value')", "{'b': 1, 'A': 2}|dictsort(reverse=true)", "{'b': 1}|dictsort(by='x')", "{1: 2, 'a': 3}|dictsort", "l|dictsort",
    "1|filesizeformat", "999|filesizeformat", "1000|filesizeformat", "123456789|filesizeformat", "123456789|filesizeformat(true)", "1e30|filesizeformat", "'12'|filesizeformat", "0|filesizeformat", "-5|filesizeformat",
    "'3.7'|float", "'x'|float", "'x'|float(1)", "'x'|float(default='y')", "' 1e3 '|float", "'1_0'|float", "'nan'|float", "'inf'|float", "'.5'|float", "'5.'|float", "'+5'|float", "'0x10'|float", "'--5'|float", "true|float", "'٣'|float", "none|float('d')",
    "'42'|int", "'42.7'|int", "'x'|int", "'x'|int(5)", "'ff'|int(base=16)", "'0xff'|int(0, 16)", "'0b11'|int(0, 2)", "'0o17'|int(0, 8)", "'0x1f'|int(0, 0)", "'012'|int(0, 0)", "'1_000'|int", "'_1'|int", "'1__0'|int", "' 42\\n'|int", "'-42'|int", "'+42'|int", "'1e3'|int", "'٣'|int", "3.99|int", "-3.99|int", "none|int", "[]|int", "true|int", "'inf'|int", "'nan'|int", "1e400|int", "'zz'|int(0, 36)", "'10'|int(0, 1)", "'10'|int(0, 99)", "1e20|int", "''|int",
    "rows|groupby('name')", "rows|groupby('name', case_sensitive=true)", "rows|groupby('n')", "rows|groupby('nope', default='z')", "rows|groupby('nope')", "(rows|groupby('name'))[0].grouper", "(rows|groupby('name'))[0].list", "(rows|groupby('name'))[0][1]", "rows|groupby(attribute='tags.0', default='q')",
    "text|indent", "text|indent(2)", "text|indent(2, true)", "text|indent(2, true, true)", "text|indent(width='> ')", "text|indent(first=true)", "'a\\n\\nb'|indent(blank=true)", "''|indent", "'a\\n'|indent", "5|indent", "text|indent(-1)", "text|indent(10**12)", "'a\\nb'|indent('\t')",
    "l|join", "l|join(', ')", "l|join(1)", "rows|join(', ', attribute='name')", "rows|join(attribute='n')", "'abc'|join('-')", "d|join(',')", "[1.0, none, true, 'x', [1]]|join(' ')", "5|join", "none|join", "missing|join(',')", "['<', '<'|safe]|join", "l|join(d='|')",
    "rows|map(attribute='name')|list", "rows|map(attribute='nope')|list", "rows|map(attribute='nope', default='z')|list", "rows|map(attribute='tags.0')|list", "rows|map(attribute='tags.0', default='-')|list", "words|map('upper')|list", "words|map('upper')", "words|map('replace', 'a', 'z')|list", "words|map('nope')|list", "words|map|list", "[]|map|list", "[]|map('nope')|list", "words|map(attribute='x', nope=1)|list", "l|map('string')|join('+')", "['a']|map('default', 'x')|list", "5|map('upper')|list", "none|map('upper')|list", "missing|map('upper')|list", "[l]|map(attribute=0)|list", "[l]|map('first')|list",
    "l|max", "l|min", "words|max", "words|min", "words|max(true)", "words|min(case_sensitive=true)", "rows|max(attribute='n')", "rows|min(attribute='name')", "[]|max", "[1, 'a']|max", "[1, 2.5]|max", "'hello'|max", "[true, 2]|max", "5|max",
    "'ab'|reverse", "l|reverse|list", "d|reverse|list", "d.items()|reverse|list", "range(3)|reverse|list", "(1, 2)|reverse|list", "5|reverse", "l|map('string')|reverse", "l|last", "'ab'|last", "[]|last", "range(3)|last", "l|map('string')|last", "d.values()|last", "l|map('string')|first", "[]|first", "5|first",
    "2.5|round", "3.5|round", "-2.5|round", "2.675|round(2)", "1.005|round(2)", "42.55|round(1, 'floor')", "42.51|round(1, 'ceil')", "-0.4|round", "5|round", "15|round(-1)", "25|round(-1)", "1234.5|round(-2)", "2.5|round(0, 'x')", "2.1|round(method='ceil')", "'a'|round", "2.5|round|int", "1e300|round", "0.5|round", "1.5|round", "-0.5|round(method='ceil')", "7|round(1, 'ceil')", "true|round", "123.456|round(5)",
    "rows|selectattr('tags')|list", "rows|selectattr('n', 'gt', 1)|map(attribute='n')|list", "rows|selectattr('n', '>=', 2)|list|length", "rows|selectattr('name', 'equalto', 'x')|list|length", "rows|selectattr('nope', 'defined')|list", "rows|rejectattr('n', 'odd')|list", "rows|selectattr('tags', 'undefined')|list|length", "rows|selectattr|list", "rows|selectattr('n', 'nope')|list", "rows|selectattr('name', 'in', ['x'])|list|length", "rows|selectattr('nope.x')|list",
    "l|select('odd')|list", "l|reject('odd')|list", "l|select|list", "[0, 1, '', 'a', none]|select|list", "l|select('gt', 1)|list", "l|select('divisibleby', 2)|list", "l|select('in', [1])|list", "l|select('nope')|list", "words|select('lower')|list", "[1, missing]|select('defined')|list", "5|select|list", "none|select|list", "l|select('odd')|first", "l|select('odd')|length", "l|select('odd') is iterable", "l|select('odd')|join(',')", "(l|select('odd'))[0]", "1 if l|select('gt', 99) else 2", "[1, 'a']|select('gt', 0)|first", "[1, 'a']|select('gt', 0)|list",
    "l|sort", "words|sort", "words|sort(case_sensitive=true)", "words|sort(reverse=true)", "words|sort(true, true)", "rows|sort(attribute='n')|map(attribute='n')|list", "rows|sort(attribute='name,n')|map(attribute='n')|list", "rows|sort(attribute='name', reverse=true)|map(attribute='n')|list", "[1, 'a']|sort", "[none, 1]|sort", "d|sort", "'hello'|sort", "[[2], [1, 5]]|sort", "[1.5, 1, true]|sort", "rows|sort", "5|sort", "[3, 1.0, 2]|sort(reverse=true)", "[['b', 1], ['A', 2]]|sort(attribute=0)",
    "'<p>a <b>b</b>  c</p>'|striptags", "'a<!-- x<y> -->b'|striptags", "'a &lt; b &amp; c'|striptags", "'a < b'|striptags", "'&#39;&#x41;&nope;'|striptags",
    "l|sum", "[1.5, 2]|sum", "rows|sum(attribute='n')", "rows|sum('n', 10)", "[]|sum", "['a']|sum", "[[1], [2]]|sum(start=[])", "[true, 2]|sum", "['a']|sum(start='')",
    "'hello world-foo (bar) x\\'y'|title", "u|title", "'HELLO'|title", "'a\\nb\\tc'|title", "'1st ab'|title", "'xx a xx'|trim('x')", "'  a '|trim", "5|trim", "'a'|trim(1)", "'abc'|trim(chars='ac')",
    "'foo bar baz qux'|truncate(9)", "'foo bar baz qux'|truncate(9, true)", "'foo bar baz qux'|truncate(11)", "'foo bar baz qux'|truncate(11, false, '...', 0)", "'foo bar baz qux'|truncate(9, end='…')", "'foo bar'|truncate(2)", "'foo bar baz qux'|truncate(9, leeway=0)", "'foobarbazqux'|truncate(9, leeway=0)", "'foo bar'|truncate(5, leeway=-1)", "l|truncate", "5|truncate",
    "[1, 1.0, true, 'a', 'A', 'b']|unique|list", "['a', 'A']|unique(true)|list", "rows|unique(attribute='name')|map(attribute='n')|list", "[[1], [1]]|unique|list", "'Hello'|unique|list", "[none, none]|unique|list",
    "'a b/c?d=é&~'|urlencode", "{'a b': 'c/d', 'e': 1}|urlencode", "[('a', 1)]|urlencode", "5|urlencode", "none|urlencode", "[1]|urlencode", "''|urlencode",
    "'a b, c-d e_f'|wordcount", "''|wordcount", "'日本 語'|wordcount", "5|wordcount",
    "'the quick brown fox jumps over the lazy dog'|wordwrap(10)", "'the quick-brown fox--jumps'|wordwrap(9)", "'aaaaaaaaaaaaaaaaaaaa bb'|wordwrap(7)", "'aaaaaaaaaaaaaaaaaaaa bb'|wordwrap(7, false)", "'a b c d'|wordwrap(3, wrapstring='|')", "'well-known e-mail x-y-z co-op'|wordwrap(6)", "'well-known e-mail'|wordwrap(6, break_on_hyphens=false)", "'a\\n\\nb c'|wordwrap(2)", "'  lead and trail  '|wordwrap(6)", "'abc'|wordwrap(0)", "''|wordwrap(0)", "'a-b -- c--d'|wordwrap(3)", "5|wordwrap", "'long-hyphenated-word'|wordwrap(6)", "'x' * 200|wordwrap",
    "{'a': 1, 'b': none, 'c': '<'}|xmlattr", "{'a': 1}|xmlattr(false)", "{}|xmlattr", "{'a b': 1}|xmlattr", "{'a': missing}|xmlattr", "l|xmlattr", "{1: 2}|xmlattr", "{'a': true}|xmlattr(autospace=true)",
    "d|attr('keys')", "d|attr('a')", "d|attr('nope')", "s|attr('upper')()", "s|attr('__class__')", "missing|attr('x')", "l|attr('append')", "d|attr",
    "'abc'|replace('b', 'x')", "'aaa'|replace('a', 'b', 2)", "5|replace('5', '6')", "'abc'|replace('', '-')", "'1 2'|replace(1, 3)", "'aaa'|replace('a', 'b', count=1)", "'aaa'|replace('a', 'b', none)", "'aaa'|replace('a')", "none|replace('None', 'x')",
    "-5|abs", "-5.5|abs", "'a'|abs", "true|abs", "(-5)|abs", "'x'|nope", "'a'|upper|lower|title", "'a b'|capitalize|replace(' ', '_')", "5|string|length", "5|string ~ 1", "l|string", "l|list|length", "d|count", "5|length", "none|length", "l|map('string')|length",
    "d|pprint", "rows|pprint", "(rows * 3)|pprint", "'x'|pprint", "('word ' * 40)|pprint", "['word ' * 20, 'a']|pprint", "{'k': ['a' * 30, 'b' * 30, 'c' * 30]}|pprint", "{'b': 1, 'a': 2}|pprint", "range(3)|pprint", "(1,)|pprint", "none|pprint", "[[1, 2] * 20]|pprint", "('a\\n' * 50)|pprint", "('x' * 100)|pprint", "{'key': {'inner': 'v' * 70}}|pprint", "((1, 2) * 30)|pprint", "{'a': 'word ' * 30}|pprint",
]:
    expression(call)

# tojson.
for value in ["d", "l", "rows", "nested", "none", "true", "1", "1.0", "1e16", "1e-7", "1e400", "-1e400", "1e400 - 1e400", "'é\\u2028<>&\\'\"\\\\/\\n\\t\\b\\f\\x01\\x7f😀'", "()", "(1, 'a')", "{}", "[]", "[[]]", "[{}]", "{1: 2, none: 3, true: 4, 1.5: 5}", "{(1,): 2}", "range(3)", "d.items()", "missing", "[missing]", "s.upper", "namespace()", "big", "10**25", "'<'|e", "{'b': [1, {'c': []}], 'a': {}}", "l|map('string')", "{'b': 1, 'a': {'d': 1, 'c': 2}}"]:
    product("({})|tojson{}", [value.replace("{", "{").replace("}", "}")], ["", "(indent=2)", "(indent=0)", "(indent='--')", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))", "(indent=1, separators=(', ', ' : '), sort_keys=true)", "(true, 3)"])
for call in ["d|tojson(nope=1)", "d|tojson(separators=',')", "d|tojson(separators=',:')", "d|tojson(indent=-1)", "d|tojson(indent=true)", "{1: 1, 'a': 2}|tojson(sort_keys=true)", "d|tojson is string", "d|tojson is escaped", "d|tojson(indent=10**12)", "d|tojson(1, 2, none, 4, 5)"]:
    expression(call)

# Statements.
TEMPLATES = r"""
{% for x in l %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}
{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{% endfor %}
{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}
{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for x in l %}{{ loop }}{% endfor %}
{% for x in l if x > 1 %}{{ x }}/{{ loop.length }}{% else %}none{% endfor %}
{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}
{% for x in [] %}{{ x }}{% else %}none{{ loop }}{% endfor %}
{% for x in missing %}{{ x }}{% else %}none{% endfor %}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for c in 'añb' %}[{{ c }}]{% endfor %}
{% for k in d %}{{ k }}{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for a, b in [[1, 2], (3, 4), 'xy'] %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{% endfor %}
{% for a, b in [[1]] %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for x in l %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}
{% break %}
{% for x in l recursive %}{{ x }}{% endfor %}
{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for x in l %}{{ loop(l) }}{% endfor %}
{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}
{% for y in l %}{% if loop.first %}{% set z = 5 %}{% endif %}{{ z }},{% endfor %}{{ z }}
{% set ns = namespace(x=1) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}
{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}{{ ns }}
{% set ns = namespace() %}{% set ns._a = 1 %}
{% set d.x = 1 %}
{% set nope.x = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a, b = 1 %}
{% set a = 1, 2 %}{{ a }}
{% set a = (1) %}{{ a }}
{% if t %}{% set q = 1 %}{% endif %}{{ q }}
{% if not t %}{% set q = 1 %}{% endif %}{{ q }}|{{ q is defined }}
{% set x %}a{{ n }}b{% endset %}[{{ x }}]
{% set x | upper | replace('A', 'z') %}a{{ n }}b{% endset %}[{{ x }}]
{% set x %}{% set y = 1 %}{% endset %}{{ y }}
{% with a=1, b=2 %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% set a = 5 %}{% with a=1, b=a %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a }}
{% filter upper %}abc{{ s }}{% endfilter %}
{% filter replace('a', 'x')|upper %}banana{% endfilter %}
{% filter indent(2) %}a
b{% endfilter %}
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, 3) }}|{{ m(1, c=9) }}|{{ m() }}
{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m(missing) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, b=2) }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}
{% macro m() %}{{ varargs|length }}{{ kwargs.items()|list }}{% endmacro %}{{ m() }}{{ m(1, k='v') }}
{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(b=1, a=2) }}{{ m(*[1, 2]) }}{{ m(**{'a': 1, 'b': 2}) }}{{ m(1, **{'b': 3}) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m(1) %}body{{ n }}{% endcall %}
{% macro m(x) %}{{ x }}{{ caller(2, 3) }}{% endmacro %}{% call(a, b=9) m(1) %}{{ a }}{{ b }}{% endcall %}
{% macro m(x) %}{{ x }}{% endmacro %}{% call m(1) %}body{% endcall %}
{% macro m() %}{{ caller is defined }}{{ caller }}{% endmacro %}{{ m() }}
{% macro m(a, b=1) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_varargs }}{{ m.catch_kwargs }}{{ m.caller }}{{ m }}
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}
{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{{ x }}
{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}
{% macro f(x, depth=0) %}{% if x is mapping %}{% for k, v in x.items() %}{{ '  ' * depth }}{{ k }}:{{ f(v, depth + 1) }}{% endfor %}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f(nested) }}
{% macro m() %}{{ m }}{% endmacro %}{{ m()|length }}
{% macro outer() %}{% macro inner() %}in{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}{{ inner is defined }}
{% macro m(caller) %}{{ caller }}{% endmacro %}{{ m(1) }}
{% macro m(a=missing) %}{{ a is defined }}{% endmacro %}{{ m() }}
{% if n > 5 and n < 9 %}a{% elif n %}b{% else %}c{% endif %}
{% if missing %}a{% elif d.x %}b{% else %}c{% endif %}
{% if missing.x %}a{% endif %}
{% if n == 7: %}a{% endif %}
{% if (n, 1) %}a{% endif %}
{% print 1, 2, 'a' %}
{% raw %}{{ x }}{% if %}{% endraw %}
{% block a %}x{{ n }}{% endblock %}
{% set q = 1 %}{% block a %}{{ q }}{% set q = 2 %}{% endblock %}{{ q }}
{% for x in l %}{% block b scoped %}{{ x }}{% endblock %}{% endfor %}
{% autoescape true %}{{ s }}{% endautoescape %}
{% generation %}a{{ n }}{% endgeneration %}b
{%- generation -%} a {%- endgeneration -%} b
{% for x in l %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}
{% generation %}{% set g = 1 %}{% endgeneration %}{{ g }}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{% if not t %}{% include 'x' %}{% endif %}ok
{% if not t %}{{ 1|nope }}{% endif %}ok
{% if t %}{{ 1|nope }}{% endif %}ok
{{ 1|nope if not t else 2 }}
{{ (1 is nope) if not t else 2 }}
{% for x in [] %}{{ 1|nope }}{% endfor %}
{% if not t %}{% for x in [] %}{{ 1|nope }}{% endfor %}{% endif %}
{% nope %}
{% if %}
{% if t %}
{% endif %}
{% for x in l %}{% endif %}
{{ }}
{{ 1 2 }}
{{ 'a }}
{{ (1 }}
{{ [1) }}
{{ a.1b }}
{{ 1.x }}
{{ n ! }}
{{ n & 1 }}
{{ n is }}
{{ |upper }}
{{ {a: 1} }}
{{ {'a' 1} }}
{# comment {{ x }} #}a{#- b -#} c
{# open
{% raw %}x
{{- n -}}   x
  {{ n }}  
  {%- if t -%}  a  {%- endif -%}  
  {%+ if t +%}  a  {%+ endif +%}  
{{+ n }}
{{ "}}" }}{{ '%}' }}{{ {'a': {'b': 1}}['a']['b'] }}
{{ {'a': {}} }}
{{ [[1]][0][0] }}{{ {'f': {'g': [1, {'h': 2}]}}.f.g[1].h }}
{{ -1|abs }}{{ (-1)|abs }}{{ 2 * -3 }}{{ 2 - -3 }}
{{ 1 + 2 * 3 ** 2 // 4 % 5 ~ 'x' ~ 1 + 1 }}
{{ not 1 == 2 }}{{ not (1 in [2]) }}{{ 1 not in [2] and not none }}
{{ 'a' ~ 'b' * 2 }}{{ 'a' ~ 1 + 1 }}
{{ s.split(', ')[1].upper()|lower }}{{ s.split(', ')|last }}
{{ 'x' if n > 5 else 'y' if n > 3 else 'z' }}
{{ ('x' if n > 50 else 'y') ~ 'z' }}
{{ l|length > 3 }}{{ l|length + 1 }}{{ n is odd and t }}
{{ rows[0].name }}{{ rows[0]['tags'][0] }}{{ rows|length }}{{ rows[-1].tags }}{{ rows[2].tags is defined }}
{{ d['a'][1] }}{{ d.a[2] }}{{ d.get('a')|length }}{{ d.a|select|list }}
{% set x = [] %}{% set x = x + [1] %}{% set x = x + [2] %}{{ x }}
{% set ns = namespace(l=[]) %}{% for i in range(3) %}{% set ns.l = ns.l + [i * i] %}{% endfor %}{{ ns.l }}
{% set _ = l.append(1) %}
{% do l.append(1) %}
{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}
{% set g = l|map('string') %}{{ g|list }}{{ g|list }}
{% set g = l|select %}{% for x in g %}{{ x }}{% break %}{% endfor %}{% for x in g %}[{{ x }}]{% endfor %}
{% set self = 1 %}{{ self }}
{% set true = 1 %}
{% set x = 1 %}{% set x = x %}{{ x }}
{% set loop = 1 %}{% for i in l %}{{ loop.index }}{% endfor %}{{ loop }}
{% for loop in l %}{{ loop }}{% endfor %}
{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}
{% for i in l %}{% set outer = loop %}{% for j in [1] %}{{ outer.index }}{{ loop.index }}{% endfor %}{% endfor %}
{% for m in rows if m.n > 1 %}{{ m.name }}{{ loop.index }}{{ loop.nextitem.n if loop.nextitem }}{% endfor %}
{% for m in rows[1:] %}{{ m.name }}{% endfor %}{% for m in rows[::-1] %}{{ m.n }}{% endfor %}
{% for m in rows|selectattr('n', 'gt', 1)|sort(attribute='n', reverse=true) %}{{ m.n }}{% endfor %}
{{ caller }}{{ varargs }}{{ kwargs }}{{ self }}
{{ n.__class__.__name__ }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ lipsum.__globals__ }}
{{ cycler.__init__ }}
{{ (s|attr('format'))('x') }}{{ '{0.__class__}'.format(s) }}
{{ s.format.__self__ }}
{% set x = "a
b" %}{{ x }}
{{ 'a\
b' }}
{%if t%}a{%endif%}{{n}}{#c#}
{% if t -%}
  a
{%- endif %}
  b
{% for x in l -%}
    {{ x }}
{% endfor %}
end
a

{% if t %}

b

{% endif %}

c

""".strip("\n").split("\n")
merged = []
for line in TEMPLATES:
    # Templates of several lines go on where a tag or string is not closed, or behind a line end that is wanted.
    merged.append(line)
for line in merged:
    add(line)
BLOCKS = [
    "{% if t %}\n  a\n{% endif %}\nb\n",
    "  {% if t %}\n  a\n  {% endif %}\n  b\n\n",
    "a\r\n{% if t %}\r\nb\r{% endif %}\r\nc\r\n",
    "{% for x in l -%}\n    {{ x }}\n{% endfor %}\nend",
    "{% for x in l %}\n{{ x }}\n{%- endfor %}\nend",
    "{%- for x in l %}\n  - {{ x }}\n  {%- if loop.last %}\n    !\n  {%- endif %}\n{%- endfor %}\n",
    "{{ n }}\n{{ n }}\n",
    "\n{% set x = 1 %}\n\n{{ x }}\n",
    "  {# c #}\n  x {# c #}\n{# c #} y",
    "\t{% if t %}\tx\t{% endif %}\t\n",
    "{% set x = \"a\nb\" %}{{ x }}",
    "{{ 'a\\\nb' }}",
    "{{ 'a\r\nb' }}",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nb",
    "{%- raw -%}\n  {{ x }}\n{%- endraw -%}\n b",
    "{% macro m() %}\n  x\n{% endmacro %}\n[{{ m() }}]",
    "{% macro m() -%}\n  x\n{%- endmacro %}\n[{{ m() }}]",
    "{% filter indent(2) %}a\nb\n{% endfilter %}",
    "{% set x %}\n a\n{% endset %}[{{ x }}]",
    "{# a\nb #}\n{{ missing.x }}",
    "x{%- if t %} y {%- endif %} z",
    "x {%- if t -%} y {%- endif -%} z",
    "x\n\n{%- if t %}\n\ny{% endif -%}\n\nz",
    "{% if t %}{% endif %}\n\n{% if t %}\n{% endif %}\nx",
    "a {{ '' -}} \n b",
    "a \n {{- '' }} b",
    "\ufeff{{ n }}",
    "é{{ u }}日本{% if t %}😀{% endif %}",
    "{% generation %}\n  x\n{% endgeneration %}\ny",
    "{{ n\n}}\n{%\nif t\n%}x{%\nendif\n%}",
    "{% for x in l %}\n{% if x == 1 %}\n{% continue %}\n{% endif %}\n{{ x }}\n{% endfor %}",
    "{{ '''a''' }}", "{{ \"it's\" }}{{ 'say \"x\"' }}", "{{ 'a' 'b'\n'c' }}", "{{ \"\\\"\" }}{{ '\\'' }}", "{{ '\\N{BULLET}' }}" if False else "{{ 1 }}",
    "{{ '\\x4' }}", "{{ '\\u12' }}", "{{ '\\é' }}", "{{ '\\q\\8' }}",
    "{" * 3 + " n " + "}" * 3, "{{ {} }}", "{{{}}}", "{%}", "{{}}", "{", "{{", "{%", "{#", "}}", "%}", "#}", "{ {", "", "\n", "\n\n",
]
for block in BLOCKS:
    add(block)

out = Path(__file__).with_name("facts.json")
lines = ",\n".join(json.dumps([template, text], ensure_ascii=False) for template, text in facts.items())
out.write_text('{"context": ' + json.dumps(CONTEXT, ensure_ascii=False) + ',\n"facts": [\n' + lines + "\n]}\n")
print(len(facts), "facts,", sum(text is None for text in facts.values()), "of them errors")
