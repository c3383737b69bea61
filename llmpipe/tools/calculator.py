"""The tool `calculator`: sums that are exact as long as they can be, from Python's syntax tree and without `eval`.

Numbers are fractions, so that 0.1 + 0.2 is 0.3; what has no exact value, such as a sine, goes on as a float.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from llmpipe.errors import TalkError
from llmpipe.tools.tool import Tool

LONGEST = 500
"""The most characters of an expression."""
MOST_BITS = 10_000
"""The largest number has some 3,000 digits."""
LARGEST_FACTORIAL = 1_000
DECIMALS = 30
"""A fraction with more decimals than this is written as a quotient and rounded."""
WRITTEN = str.maketrans("×·÷−–", "**/--") | {ord("^"): "**", ord("²"): "**2", ord("³"): "**3", ord("π"): "pi"}
"""How people write what Python writes otherwise."""
LITERAL = re.compile(r"(?i)\d[\d_]*(\.[\d_]*)?(e[+-]?\d{1,4})?|\.\d[\d_]*(e[+-]?\d{1,4})?")

Number = Fraction | float


def tool() -> Tool:
    """Return a tool that works out an expression."""
    return Tool(
        name="calculator",
        description=(
            "Works out an expression exactly, such as (3 + 4) * 2 ** 10 / 7 or round(sqrt(2), 4). "
            f"Has + - * / // % ** and {', '.join([*FUNCTIONS, *CONSTANTS])}."
        ),
        parameters={
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "numbers, operators and functions"}},
            "required": ["expression"],
            "additionalProperties": False,
        },
        needs="nothing",
        call=lambda arguments: worked_out(arguments["expression"]),
    )


def worked_out(expression: str) -> str:
    """Return the value of an expression.

    Raises:
        TalkError: it is none, has no value, or a number in it becomes too large.
    """
    text = expression.strip().rstrip("=").strip().translate(WRITTEN)
    if len(text) > LONGEST:
        raise TalkError(f"an expression has at most {LONGEST} characters")
    try:
        tree = ast.parse(text, mode="eval")
        return _written(_Sum(text).value(tree.body))
    except (SyntaxError, ValueError) as error:
        raise TalkError(
            f"this is no expression: {getattr(error, 'msg', error)}", hint="write it as 12.5 * (3 + 4)"
        ) from error
    except ZeroDivisionError as error:
        raise TalkError("this divides by zero") from error
    except OverflowError as error:
        raise TalkError("a number becomes too large") from error
    except (RecursionError, MemoryError) as error:
        raise TalkError("this is nested too deeply") from error


class _Sum:
    """Walks the tree of one expression."""

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, node: ast.expr) -> Number:
        match node:
            case ast.Constant():
                return self.literal(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.BinOp(op=operator, left=left, right=right) if type(operator) in OPERATORS:
                return _bounded(OPERATORS[type(operator)](self.value(left), self.value(right)))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.called(name, arguments)
            case ast.Name(id=name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.Tuple():
                raise TalkError("a comma only separates the arguments of a function", hint="write 1000 for 1,000")
        raise TalkError(
            f"{ast.get_source_segment(self.text, node)} is nothing to calculate",
            hint=f"there are + - * / // % ** and {', '.join([*FUNCTIONS, *CONSTANTS])}",
        )

    def literal(self, node: ast.Constant) -> Fraction:
        """Read a number from the text: a float of Python's would have rounded it."""
        written = ast.get_source_segment(self.text, node) or ""
        if not LITERAL.fullmatch(written):
            raise TalkError(f"{written} is no decimal number")
        return _exact(Fraction(written))

    def called(self, name: str, arguments: list[ast.expr]) -> Number:
        if name not in FUNCTIONS:
            raise TalkError(f"there is no function {name}", hint=f"there are {', '.join(FUNCTIONS)}")
        values = [self.value(argument) for argument in arguments]
        try:
            return _bounded(FUNCTIONS[name](*values))
        except TypeError as error:
            raise TalkError(f"{name} does not take {len(values)} numbers such as these") from error
        except ValueError as error:
            raise TalkError(f"{name} has no value there") from error


def _exact(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS:
        raise TalkError(f"a number has more than {MOST_BITS:,} bits, the most there is room for")
    return number


def _bounded(number: Number | int) -> Number:
    if isinstance(number, int | Fraction):
        return _exact(Fraction(number))
    if not math.isfinite(number):
        raise TalkError("a number becomes too large")
    return number


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if size * abs(exponent.numerator) > MOST_BITS:
            raise TalkError(f"a power has more than {MOST_BITS:,} bits, the most there is room for")
        power: Fraction = base**exponent.numerator
        return power
    if exponent == Fraction(1, 2):
        return _root(base)
    if base < 0:
        raise TalkError("a root of a negative number is no real number")
    return math.pow(base, exponent)


def _root(number: Number) -> Number:
    if number < 0:
        raise TalkError("a root of a negative number is no real number")
    if isinstance(number, Fraction):
        roots = math.isqrt(number.numerator), math.isqrt(number.denominator)
        if roots[0] ** 2 == number.numerator and roots[1] ** 2 == number.denominator:
            return Fraction(*roots)
    return math.sqrt(number)


def _whole(number: Number) -> int:
    if number != math.floor(number):
        raise ValueError("it takes whole numbers")
    return int(number)


def _factorial(number: Number) -> int:
    if _whole(number) > LARGEST_FACTORIAL:
        raise TalkError(f"factorial goes up to {LARGEST_FACTORIAL:,}")
    return math.factorial(_whole(number))


def _chosen(total: Number, picked: Number) -> int:
    if _whole(total) > LARGEST_FACTORIAL:
        raise TalkError(f"comb goes up to {LARGEST_FACTORIAL:,}")
    return math.comb(_whole(total), _whole(picked))


def _rounded(number: Number, digits: Number = Fraction(0)) -> Number:
    """Round halves away from zero, as people are taught; Python rounds them to the even neighbour."""
    if abs(_whole(digits)) > DECIMALS:
        raise TalkError(f"round goes up to {DECIMALS} digits")
    scale = Fraction(10) ** _whole(digits)
    scaled = abs(Fraction(number)) * scale
    return (1 if number >= 0 else -1) * Fraction(math.floor(scaled + Fraction(1, 2))) / scale


def _logarithm(number: Number, base: Number | None = None) -> float:
    return math.log(number) if base is None else math.log(number, base)


def _written(number: Number) -> str:
    """Write a number: whole, as a decimal where that is exact, else as a quotient and what it is about."""
    if isinstance(number, float):
        return f"about {number:.15g}"
    if number.denominator == 1:
        return str(number.numerator)
    rest, decimals = number.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        decimals = max(decimals, power)
    if rest == 1 and decimals <= DECIMALS:
        digits = str(abs(number.numerator) * 10**decimals // number.denominator).zfill(decimals + 1)
        return f"{'-' if number < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"
    quotient = f"{number.numerator}/{number.denominator}"
    return f"{quotient}, about {float(number):.15g}" if len(quotient) <= 60 else f"about {float(number):.15g}"


OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: Fraction(left // right),
    ast.Mod: lambda left, right: left % right,
    ast.Pow: _power,
}
FUNCTIONS: Mapping[str, Callable[..., Number | int]] = {
    "sqrt": _root,
    "abs": abs,
    "round": _rounded,
    "floor": math.floor,
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "log": _logarithm,
    "log2": math.log2,
    "log10": math.log10,
    "exp": math.exp,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "degrees": math.degrees,
    "radians": math.radians,
    "factorial": _factorial,
    "comb": _chosen,
    "gcd": lambda one, other: math.gcd(_whole(one), _whole(other)),
    "lcm": lambda one, other: math.lcm(_whole(one), _whole(other)),
}
CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}
