"""As much of XML Schema as ``junit.xsd`` uses: nested elements, sequence, choice, occurrences, attributes, types."""

from __future__ import annotations

import re
from xml.etree import ElementTree

_XS = "{http://www.w3.org/2001/XMLSchema}"
_TYPES = {
    "xs:token": r"\S(?:.*\S)?",
    "xs:string": r"(?s:.*)",
    "xs:int": r"[+-]?\d{1,10}",
    "xs:decimal": r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)",
    "xs:dateTime": r"-?\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?",
}


def faults(document: str, schema: str) -> list[str]:
    """Everything in which ``document`` differs from ``schema``; empty when it is valid."""
    root = ElementTree.fromstring(document.encode())
    (declared,) = ElementTree.fromstring(schema.encode()).findall(f"{_XS}element")
    if root.tag != declared.get("name"):
        return [f"the root is {root.tag}"]
    return _element(root, declared, root.tag)


def _element(element, declared, where):
    kind = declared.find(f"{_XS}complexType")
    found = _attributes(element, kind, where)
    group = kind.find(f"{_XS}sequence")
    chosen = kind.find(f"{_XS}choice")
    if group is not None:
        found += _sequence(list(element), group, where)
    elif chosen is not None:
        found += _choice(list(element), chosen, where)
    elif len(element):
        found.append(f"{where} has children")
    if kind.get("mixed") != "true" and any((text or "").strip() for text in (element.text, *(c.tail for c in element))):
        found.append(f"{where} has text")
    return found


def _attributes(element, kind, where):
    declared = {a.get("name"): a for a in kind.findall(f"{_XS}attribute")}
    found = [f"{where} has the attribute {name}" for name in element.attrib if name not in declared]
    for name, attribute in declared.items():
        value = element.get(name)
        if value is None:
            found += [f"{where} lacks {name}"] if attribute.get("use") == "required" else []
        elif not re.fullmatch(_TYPES[attribute.get("type")], value):
            found.append(f"{where}.{name} is {value!r}, no {attribute.get('type')}")
    return found


def _sequence(children, group, where):
    found = []
    for declared in group.findall(f"{_XS}element"):
        name, least, most = declared.get("name"), int(declared.get("minOccurs", 1)), declared.get("maxOccurs", "1")
        count = 0
        while children and children[0].tag == name and (most == "unbounded" or count < int(most)):
            found += _element(children.pop(0), declared, f"{where}/{name}[{count}]")
            count += 1
        if count < least:
            found.append(f"{where} lacks {name}")
    return found + [f"{where} has {child.tag} too many or in the wrong place" for child in children]


def _choice(children, group, where):
    by_name = {e.get("name"): e for e in group.findall(f"{_XS}element")}
    if len(children) > 1 or any(child.tag not in by_name for child in children):
        return [f"{where} has {[child.tag for child in children]}"]
    return [fault for child in children for fault in _element(child, by_name[child.tag], f"{where}/{child.tag}")]
