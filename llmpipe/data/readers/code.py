"""Source code as it lies in a tree: a file is one document, with its language and its licence.

What people did not write there is passed over and counted: generated and minified files, lock files, vendored folders.
The table of suffixes is ours, for a library's would change what is read when it is upgraded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from io import BufferedReader
from pathlib import Path, PurePath

from llmpipe.data import PassedOver, Row
from llmpipe.data.readers import documents
from llmpipe.errors import Problem

_SUFFIXES = """
ada: adb ads; assembly: asm s; c: c h; c#: cs; c++: cc cpp cxx hh hpp hxx; clojure: clj cljs; cmake: cmake;
common lisp: lisp; css: css scss less; cuda: cu cuh; cython: pyx pxd; dart: dart; elixir: ex exs; elm: elm; erlang: erl;
f#: fs; fortran: f90 f95 f03; glsl: glsl; go: go; groovy: groovy; haskell: hs; java: java; javascript: js mjs cjs jsx;
julia: jl; kotlin: kt kts; latex: tex; lua: lua; nim: nim; nix: nix; ocaml: ml mli; pascal: pas; perl: pl pm; php: php;
powershell: ps1; protobuf: proto; python: py pyi; r: r; restructuredtext: rst; ruby: rb; rust: rs; scala: scala;
scheme: scm; shell: sh bash zsh; solidity: sol; sql: sql; swift: swift; toml: toml; typescript: ts tsx mts;
verilog: v sv; vhdl: vhd vhdl; vue: vue; yaml: yaml yml; zig: zig
"""
LANGUAGES = {
    f".{suffix}": language.strip()
    for language, _, suffixes in (line.partition(":") for line in _SUFFIXES.split(";"))
    for suffix in suffixes.split()
}
"""The language of a file by its suffix."""

VENDORED = frozenset(
    "node_modules bower_components jspm_packages vendor vendored _vendor third_party third-party thirdparty "
    "site-packages dist-packages".split()
)
LOCK_FILE = re.compile(r"(?:^|[-._])lock\.(?:ya?ml|toml)$", re.IGNORECASE)
MINIFIED = re.compile(r"[.-]min\.(?:js|mjs|css)$", re.IGNORECASE)
GENERATED_NAME = re.compile(r"(?:_pb2(?:_grpc)?\.pyi?|\.pb\.(?:go|cc|h)|\.g\.dart|\.designer\.cs)$", re.IGNORECASE)
GENERATED = re.compile(
    r"@generated\b|^\W*(?:code |file )?(?:auto(?:matically)?[- ]?)?generated (?:by|from|using|with)\b"
    r"|\bgenerated\b.{0,80}\bdo not (?:edit|modify)|\bdo not (?:edit|modify)\b.{0,80}\bgenerated\b"
    r"|\bthis (?:file|code|module) (?:is|was|has been) (?:auto(?:matically)?|machine)[- ]?generated\b",
    re.IGNORECASE | re.MULTILINE,
)
HEAD_CHARACTERS = 2000
"""Where a file says who made it and under which licence."""
LINE_CHARACTERS = 110
"""Longer lines than this on average are minified; so says GitHub's linguist (lib/linguist/generated.rb)."""

SPDX = re.compile(r"SPDX-License-Identifier:\s*\(?([\w.+-]+(?: (?:OR|AND|WITH) [\w.+-]+)*)")
LICENCES = {  # the first that fits: the GNU licences name each other
    "AGPL-3.0": r"GNU Affero General Public License",
    "LGPL-2.1": r"GNU Lesser General Public License.{0,200}version 2\.1",
    "LGPL-3.0": r"GNU Lesser General Public License",
    "GPL-3.0": r"GNU General Public License.{0,300}version 3",
    "GPL-2.0": r"GNU General Public License.{0,300}version 2",
    "Apache-2.0": r"Apache License,? version 2\.0",
    "MPL-2.0": r"Mozilla Public License,? (?:version |v\. ?)2\.0",
    "MIT": r"Permission is hereby granted, free of charge|\bMIT licen[cs]e\b",
    "ISC": r"Permission to use, copy, modify, and/or distribute this software",
    "BSD-3-Clause": r"Redistribution and use in source and binary forms.*neither the name|\bBSD[- ]3[- ]clause",
    "BSD-2-Clause": r"Redistribution and use in source and binary forms|\bBSD[- ]2[- ]clause",
    "Unlicense": r"free and unencumbered software released into the public domain",
    "CC0-1.0": r"CC0 1\.0 Universal",
}
FILES = re.compile(r"(?:un)?licen[cs]e|copying", re.IGNORECASE)


def source(file: BufferedReader, name: str) -> Iterator[Row | Problem | PassedOver]:
    """Yield a file as one document: `text`, `language`, and `licence` by its SPDX name where one is found.

    Of a large file, which is several, the first says what becomes of all.
    """
    path, facts = PurePath(name), None
    for item in documents.text(file, name):
        if not isinstance(item, Row):
            facts = facts or {"language": language_of(path)}
            yield item
            continue
        if facts is None:
            text = str(item.value["text"])
            if why := _made(path, text):
                yield PassedOver(why)
                return
            licence = licence_in(text[:HEAD_CHARACTERS]) or _of_folder(Path(name).parent)
            facts = {"language": language_of(path)} | ({"licence": licence} if licence else {})
        yield Row(item.where, item.value | facts)
    if facts is None:
        yield PassedOver("empty")


def _made(path: PurePath, text: str) -> str | None:
    """Say by how its text begins why a file was not written by people."""
    if GENERATED.search(text[:HEAD_CHARACTERS]):
        return "generated"
    return "minified" if language_of(path) in ("javascript", "css") and _is_minified(text) else None


def language_of(path: PurePath) -> str | None:
    """Return the language that a file is written in, by its suffix."""
    return LANGUAGES.get(path.suffix.lower())


def passed_over(path: Path, *, below: Path) -> PassedOver | None:
    """Say by its name alone why a file is not to be read; a vendored folder counts where it lies below the source."""
    if VENDORED & set(path.relative_to(below).parts[:-1]):
        return PassedOver("vendored")
    for pattern, why in ((LOCK_FILE, "lock files"), (MINIFIED, "minified"), (GENERATED_NAME, "generated")):
        if pattern.search(path.name):
            return PassedOver(why)
    return PassedOver("empty") if path.is_file() and path.stat().st_size == 0 else None


def licence_in(text: str) -> str | None:
    """Return the licence that a text names or is, by its SPDX name."""
    if found := SPDX.search(text):
        return found[1]
    flat = " ".join(re.sub(r"[^\w.,/()-]+", " ", text).split())  # comment marks stand between the words
    return next((name for name, words in LICENCES.items() if re.search(words, flat, re.IGNORECASE)), None)


@lru_cache(maxsize=10_000)
def _of_folder(folder: Path) -> str | None:
    """Return the licence of the nearest licence file, upwards to the root of the repository."""
    if folder.is_dir():
        for file in sorted(entry for entry in folder.iterdir() if FILES.match(entry.name) and entry.is_file()):
            with file.open(encoding="utf-8", errors="replace") as opened:
                if found := licence_in(opened.read(HEAD_CHARACTERS)):
                    return found
    above = folder.absolute().parent
    return None if above == folder.absolute() or (folder / ".git").exists() else _of_folder(above)


def _is_minified(text: str) -> bool:
    return len(text) > LINE_CHARACTERS * (text.count("\n") + 1)
