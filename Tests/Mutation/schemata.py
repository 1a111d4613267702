"""All mutants of a file in one source text: each is chosen when the program runs.

An operator becomes a fresh operator of the same precedence, whose function asks which mutant is
active. So nothing has to be parsed, and the compiler says where a mutant is none.
"""

from dataclasses import dataclass, field

from swift_tokens import tokens

COMPARISON, LOGIC, ARITHMETIC, SHIFT, RANGE = range(5)
# operator: (precedence, group, mutants)
OPERATORS = {
    "<": ("ComparisonPrecedence", COMPARISON, ["<=", ">="]),
    "<=": ("ComparisonPrecedence", COMPARISON, ["<", ">"]),
    ">": ("ComparisonPrecedence", COMPARISON, [">=", "<="]),
    ">=": ("ComparisonPrecedence", COMPARISON, [">", "<"]),
    "==": ("ComparisonPrecedence", COMPARISON, ["!="]),
    "!=": ("ComparisonPrecedence", COMPARISON, ["=="]),
    "&&": ("LogicalConjunctionPrecedence", LOGIC, ["||"]),
    "||": ("LogicalDisjunctionPrecedence", LOGIC, ["&&"]),
    "+": ("AdditionPrecedence", ARITHMETIC, ["-"]),
    "-": ("AdditionPrecedence", ARITHMETIC, ["+"]),
    "*": ("MultiplicationPrecedence", ARITHMETIC, ["/"]),
    "/": ("MultiplicationPrecedence", ARITHMETIC, ["*"]),
    "%": ("MultiplicationPrecedence", ARITHMETIC, ["/"]),
    "&": ("MultiplicationPrecedence", ARITHMETIC, ["|"]),
    "|": ("AdditionPrecedence", ARITHMETIC, ["&"]),
    "&+": ("AdditionPrecedence", ARITHMETIC, ["&-"]),
    "&-": ("AdditionPrecedence", ARITHMETIC, ["&+"]),
    "&*": ("MultiplicationPrecedence", ARITHMETIC, ["&+"]),
    "<<": ("BitwiseShiftPrecedence", SHIFT, [">>"]),
    ">>": ("BitwiseShiftPrecedence", SHIFT, ["<<"]),
    "&<<": ("BitwiseShiftPrecedence", ARITHMETIC, ["&>>"]),
    "&>>": ("BitwiseShiftPrecedence", ARITHMETIC, ["&<<"]),
    "..<": ("RangeFormationPrecedence", RANGE, ["..."]),
    "...": ("RangeFormationPrecedence", RANGE, ["..<"]),
    "+=": ("AssignmentPrecedence", ARITHMETIC, ["-="]),
    "-=": ("AssignmentPrecedence", ARITHMETIC, ["+="]),
    "|=": ("AssignmentPrecedence", ARITHMETIC, ["&="]),
}
NO_CALL = {"return", "throw", "if", "guard", "for", "while", "switch", "let", "var", "func",
           "case", "default", "defer", "repeat", "do", "init", "enum", "struct", "extension"}


@dataclass
class Site:
    """A place, its mutants, and the edits that put them there."""
    file: str  # relative to the package
    line: int
    source: str  # the line
    what: str  # what stands there
    mutants: list  # what each mutant makes of it
    edits: list  # (position, end, text), where {id} is the first mutant's number
    declaration: str = ""
    number: int = 0  # of the first mutant
    nth: int = field(default=1)  # among the sites of the line that look alike


def find_sites(file, text):
    code = tokens(text)
    lines = text.split("\n")
    skipped = untouched(code, lines)
    sites = []

    def add(token, what, mutants, edits, declaration=""):
        sites.append(Site(file, token.line, lines[token.line - 1].strip(), what, mutants, edits,
                          declaration))

    for index, token in enumerate(code):
        if index in skipped:
            continue
        before = code[index - 1].text if index else ""
        if token.kind == "operator" and is_binary(code, index):
            _, _, mutants = OPERATORS[token.text]
            add(token, token.text, mutants, [(token.start, token.end, "{operator}")],
                token.text)
        elif token.text == "!" and token.kind == "operator" and not token.is_spaced[1] \
                and (token.is_spaced[0] or before in "(["):
            add(token, "!", [""], [(token.start, token.end, "{operator}")], "!")
        elif token.kind == "number" and before != ".":
            add(token, token.text, [f"{token.text} + 1"],
                wrapped(token.start, token.end, "mutated"))
        elif token.text == "true" and before == "while":
            # A loop without an end: the compiler knows that nothing follows it.
            continue
        elif token.text in ("true", "false"):
            add(token, token.text, ["false" if token.text == "true" else "true"],
                wrapped(token.start, token.end, "mutated"))
        elif token.text in ("min", "max") and before != "." and code[index + 1].text == "(":
            other = "max" if token.text == "min" else "min"
            add(token, token.text, [other],
                [(token.start, code[index + 1].end, f"mutated_{token.text}({{id}}, ")])
        elif token.text in ("guard", "if", "while") and before != "#":
            if token.text == "while" and code[index + 1].text == "true":
                continue
            for first, last in conditions(code, index):
                forced = ["false"] if token.text == "while" else ["true", "false"]
                order = "forced_false" if token.text == "while" else "forced"
                clause = " ".join(text[code[first].start:code[last].end].split())
                add(code[first], f"{token.text} {clause}", forced,
                    wrapped(code[first].start, code[last].end, order))
        if token.opens_line and token.kind == "name" and token.text not in NO_CALL:
            last = call_end(code, index)
            if last:
                statement = " ".join(text[token.start:code[last].end].split())
                add(token, statement, ["nothing"],
                    [(token.start, token.start, "if !isActive({id}) {{ "),
                     (code[last].end, code[last].end, " }}")])
    number_alike(sites)
    return sites


def number_alike(sites):
    seen = {}
    for site in sites:
        key = (site.source, site.what)
        seen[key] = site.nth = seen.get(key, 0) + 1


def wrapped(start, end, function):
    return [(start, start, f"{function}({{id}}, "), (end, end, ")")]


def untouched(code, lines):
    """Tokens in imports, attributes, directives and patterns; and in the tables of fields, status
    codes and element types, which tests compare as a whole with the text of what specifies them."""
    skipped, in_pattern, depth = set(), False, 0
    for index, token in enumerate(code):
        line = lines[token.line - 1].strip()
        if token.opens_line and token.text == "case":
            in_pattern, depth = True, len(token.brackets)
        if in_pattern or line.startswith(("#", "@")) or "import " in line \
                or "LayoutField(\"" in line and "static let" in line \
                or "= Code(rawValue:" in line or "ElementType(name:" in line:
            skipped.add(index)
        # Enumeration cases have no colon, and end with their line.
        if in_pattern and len(token.brackets) == depth and (
                token.text == ":" or token.text != "," and index + 1 < len(code)
                and code[index + 1].line > token.line):
            in_pattern = False
    return skipped


def is_binary(code, index):
    token, before, behind = code[index], code[index - 1], code[index + 1]
    if token.text not in OPERATORS or before.text == "func":
        return False
    # Types: `A & B`.
    if token.text == "&" and before.text[:1].isupper() and behind.text[:1].isupper():
        return False
    if token.is_spaced == (True, True):
        return True
    is_tight = token.is_spaced == (False, False)
    return is_tight and token.text in ("..<", "...") and before.text not in ("(", "[", ",") \
        and behind.text not in (")", "]", ",")


def conditions(code, index):
    """The first and last token of each condition behind guard, if or while that binds nothing."""
    depth = len(code[index].brackets)
    stop = "else" if code[index].text == "guard" else "{"
    start = position = index + 1
    while True:
        token = code[position]
        is_end = token.text == stop and len(token.brackets) == depth
        if is_end or token.text == "," and len(token.brackets) == depth:
            texts = [part.text for part in code[start:position]]
            if texts and texts[0] not in ("let", "var", "case") and "try" not in texts:
                yield start, position - 1
            start = position + 1
        if is_end:
            return
        position += 1


def call_end(code, index):
    """The closing parenthesis of the call statement that begins here, or None."""
    depth = len(code[index].brackets)
    if depth and not code[index].brackets.endswith("{") or not depth:
        return None
    position = index
    while code[position].text in ("try", "unsafe", "_", "="):
        position += 1
    if code[position].kind != "name":
        return None
    last = None
    while position < len(code):
        token = code[position]
        if len(token.brackets) < depth:
            break
        if len(token.brackets) == depth:
            if position > index and token.line > code[position - 1].line and token.opens_line \
                    and token.text not in (")", "]", "}", "."):
                break
            is_part = token.kind == "name" or token.text in (".", "?", "(", ")", "[", "]") \
                or token.text in ("=",) and code[position - 1].text == "_"
            if not is_part or token.text == "else":
                return None
            last = position
        position += 1
    return last if last and code[last].text == ")" else None


# ---------------------------------------------------------------- the switch

def fresh_operator(number):
    """An operator that nobody else has."""
    return "".join(chr(0x2A00 + int(digit, 16)) for digit in f"{number:04x}")


def declare(site):
    """The operator of `site`, as Swift."""
    name, number = fresh_operator(site.number), site.number
    if site.declaration == "!":
        return (f"prefix operator {name}\n"
                f"@inlinable public prefix func {name} (x: Bool) -> Bool {{ "
                f"isActive({number}) ? x : !x }}\n")
    old = site.declaration
    precedence, group, _ = OPERATORS[old]
    head = f"infix operator {name}: {precedence}\n"

    def function(generics, left, right, result, body):
        return (f"@inlinable public func {name} {generics}(l: {left}, r: {right}) -> {result} {{ "
                f"{body} }}\n")

    choice = f"l {old} r"
    for offset, mutant in reversed(list(enumerate(site.mutants))):
        choice = f"isActive({number + offset}) ? l {mutant} r : {choice}"
    if group == LOGIC:
        other = site.mutants[0]
        return head + (
            f"@inlinable public func {name} (l: Bool, r: @autoclosure () throws -> Bool) rethrows "
            f"-> Bool {{ isActive({number}) ? try l {other} r() : try l {old} r() }}\n")
    if group == COMPARISON and old in ("==", "!="):
        return head + function("<T: Equatable>", "T", "T", "Bool", choice)
    if group == COMPARISON:
        return head + function("<T: Comparable>", "T", "T", "Bool", choice) + "".join(
            function("<" + ", ".join(f"{part}: Comparable" for part in parts) + ">",
                     "(" + ", ".join(parts) + ")", "(" + ", ".join(parts) + ")", "Bool", choice)
            for parts in ("AB", "ABC"))
    if group == SHIFT:
        return head + function(
            "<T: FixedWidthInteger, U: BinaryInteger>", "T", "U", "T", choice)
    if group == RANGE:
        result = "Range<T>" if old == "..<" else "ClosedRange<T>"
        other = "l..<(r + 1)" if old == "..<" else "l...(r - 1)"
        return head + function("<T: FixedWidthInteger>", "T", "T", result,
                               f"isActive({number}) ? {other} : l{old}r")
    if old.endswith("="):
        return head + (f"@inlinable public func {name} <T: FixedWidthInteger>(l: inout T, r: T) "
                       f"{{ if isActive({number}) {{ l {site.mutants[0]} r }} "
                       f"else {{ l {old} r }} }}\n")
    text = head + function("<T: FixedWidthInteger>", "T", "T", "T", choice)
    if old in "+-":
        for pointer in ("UnsafeRawPointer", "UnsafeMutableRawPointer"):
            text += function("", pointer, "Int", pointer, choice)
    return text


HELPERS = """
import Glibc

@usableFromInline let activeMutant =
    getenv("PCCHECK_MUTANT").flatMap { Int(String(cString: $0)) } ?? 0

@inlinable public func isActive(_ number: Int) -> Bool { activeMutant == number }
@inlinable public func mutated<T: FixedWidthInteger>(_ number: Int, _ value: T) -> T {
    activeMutant == number ? value + 1 : value
}
@inlinable public func mutated(_ number: Int, _ value: Bool) -> Bool {
    (activeMutant == number) != value
}
@inlinable public func mutated_min<T: Comparable>(_ number: Int, _ l: T, _ r: T) -> T {
    activeMutant == number ? max(l, r) : min(l, r)
}
@inlinable public func mutated_max<T: Comparable>(_ number: Int, _ l: T, _ r: T) -> T {
    activeMutant == number ? min(l, r) : max(l, r)
}
@inlinable public func forced(_ number: Int, _ value: Bool) -> Bool {
    activeMutant == number ? true : activeMutant == number + 1 ? false : value
}
@inlinable public func forced_false(_ number: Int, _ value: Bool) -> Bool {
    activeMutant == number ? false : value
}
"""


def switch_module(sites):
    return HELPERS + "".join(declare(site) for site in sites if site.declaration)


def mutated_source(text, sites):
    """`text` with every mutant of `sites` in it, line for line; and at which byte of its line the
    first edit of each site, by number, then stands, which is how the compiler counts."""
    edits = []
    for order, site in enumerate(sites):
        for part, (start, end, new) in enumerate(site.edits):
            new = new.replace("{operator}", fresh_operator(site.number))
            new = new.format(id=site.number)
            # At one place, closing comes first, then outer before inner opening.
            is_closing = part == 1
            edits.append((start, not is_closing, -order if is_closing else order, end, new,
                          None if is_closing else site.number))
    output, position, columns = "", 0, {}
    for start, _, _, end, new, number in sorted(edits, key=lambda edit: edit[:3]):
        output += text[position:start]
        if number:
            columns[number] = len(output[output.rfind("\n") + 1:].encode()) + 1
        output += new
        position = max(position, end)
    return output + text[position:] + "\npublic import MutantSwitch\n", columns
