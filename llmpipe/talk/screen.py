"""Shows an answer in a terminal while it comes: wrapped between words, with bold and code told apart.

Nothing is taken out but control characters: the marks of Markdown stay, so that what is copied is what was written.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from llmpipe.console import clean

CODE = "cyan"
FENCE = "```"


class Screen:
    """Prints a text that comes in parts; a word is shown once it is whole."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._column = 0
        self._gap = ""  # spaces between the last word and the next
        self._word: list[tuple[str, str]] = []  # parts with their styles
        self._marks = ""  # a run of * or ` that may get longer
        self._is_bold = self._is_code = self._is_fenced = self._is_fence_line = False
        self._begins = True  # nothing but spaces on this line yet

    def write(self, text: str) -> None:
        """Take the next part of the text."""
        for char in clean(text).replace("\t", "    "):
            if self._marks and char != self._marks[0]:
                self._mark(before=char)
            if char in "*`":
                self._marks += char
            elif char == "\n":
                self._break()
            elif char == " ":
                self._flush()
                self._gap += " "
            else:
                self._append(char)

    def end(self) -> None:
        """Show what is left, and end the line."""
        if self._marks:
            self._mark(before="\n")
        self._flush()
        if self._column:
            self.console.print()
            self._column = 0

    def _append(self, char: str) -> None:
        self._begins = False
        wide = cell_len(char) > 1  # scripts that put no spaces between their words break anywhere
        if wide:
            self._flush()
        self._put(char, self._style())
        if wide:
            self._flush()

    def _put(self, text: str, style: str) -> None:
        """Lengthen the word, by as few parts as there are styles."""
        if self._word and self._word[-1][1] == style:
            text = self._word.pop()[0] + text
        self._word.append((text, style))

    def _style(self) -> str:
        if self._is_fence_line:
            return "dim"
        return CODE if self._is_code or self._is_fenced else "bold" if self._is_bold else ""

    def _mark(self, *, before: str) -> None:
        """Read a run of marks as Markdown does, where it opens or closes something, and show it."""
        marks, self._marks = self._marks, ""
        style = self._style()
        if marks.startswith(FENCE) and self._begins:
            self._is_fenced = not self._is_fenced
            self._is_fence_line, style = True, "dim"
        elif self._is_fenced:
            pass
        elif marks == "`":
            self._is_code, style = not self._is_code, CODE
        elif marks == "**" and not self._is_code and (self._is_bold or not before.isspace()):
            self._is_bold, style = not self._is_bold, "bold"
        self._begins = False
        self._put(marks, style)

    def _flush(self) -> None:
        """Print the word that was begun, on a new line if it does not fit on this one; code is left as it is."""
        if not self._word:
            return
        word = Text.assemble(*self._word)
        width = cell_len(word.plain)
        is_code = self._is_fenced or self._is_fence_line
        if self._column and not is_code and self._column + len(self._gap) + width > self.console.width:
            self.console.print()
            self._column, self._gap = 0, ""
        self.console.print(Text.assemble(self._gap, word), end="", soft_wrap=True)
        self._column += len(self._gap) + width
        self._gap, self._word = "", []

    def _break(self) -> None:
        self._flush()
        self.console.print()
        self._column, self._gap, self._begins = 0, "", True
        self._is_bold = self._is_code = self._is_fence_line = False
