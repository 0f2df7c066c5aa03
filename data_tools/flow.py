"""A proof about a template: contents of messages flow into its output as they are, and decide nothing.

Then the text of a conversation is made of constant parts, which depend on the roles only, and the contents between.
The proof walks the template's syntax tree and knows three kinds of values that depend on contents: the list of
messages, a message, a content. Whatever it does not know (a macro, a filter, a comparison of contents) is no proof.

The content of a system message at the head may do anything where the template has made sure that it is one, by
`messages[0].role == "system"`: conversations are told apart by it.
"""

from collections import defaultdict
from collections.abc import Iterable

from jinja2 import nodes

Kinds = frozenset[str]
NOTHING: Kinds = frozenset()
LIST, MESSAGE, CONTENT = frozenset({"list"}), frozenset({"message"}), frozenset({"content"})
NAMESPACE, LOOP = frozenset({"namespace"}), frozenset({"loop"})
"""What holds any of them: only its attributes may be asked for, by their names."""

_TYPE_TESTS = {"string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "boolean"}
_STRIPS = {"strip", "lstrip", "rstrip"}
_STRIPPED = ((), ("\n",))
"""What may be stripped off contents: white space, or line breaks (`skeleton.py` sees which)."""


class _Unknown(Exception):
    """Something that contents flow into and that this proof does not understand."""


def contents_only_flow_out(template: nodes.Template) -> bool:
    """Whether the proof holds, for conversations whose contents are texts that are not blank."""
    stored = {name.name for name in template.find_all(nodes.Name) if name.ctx != "load"}
    flow = _Flow(head_is_told="messages" not in stored)
    try:
        before = None
        while before != flow.names:
            before = dict(flow.names)
            flow.statements(template.body)
    except _Unknown:
        return False
    return True


class _Flow:
    """What is known of names; grows until nothing changes."""

    def __init__(self, head_is_told: bool) -> None:
        """Start with what a template is given; `head_is_told`: whether `messages` always begins at the head."""
        self.names: dict[str, Kinds] = defaultdict(lambda: NOTHING, messages=LIST, loop=LOOP)
        self._head_is_told = head_is_told
        self._head_is_system = False

    def statements(self, body: Iterable[nodes.Node]) -> None:
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    if not self._kinds(part) <= CONTENT:
                        raise _Unknown
            case nodes.If():
                self._decides(node.test)
                outside, self._head_is_system = self._head_is_system, self._head_is_system or self._asks_head(node.test)
                self.statements(node.body)
                self._head_is_system = outside
                self.statements([*node.elif_, *node.else_])
            case nodes.For():
                self._loop(node)
            case nodes.Assign(target=nodes.Name(name=name)):
                self._learn(name, self._kinds(node.node))
            case nodes.Assign(target=nodes.NSRef(name=name, attr=attribute)):
                kinds = self._kinds(node.node)
                self._learn(f"{name}.{attribute}", kinds)
                self.names[name] = self.names[name] | (NAMESPACE if kinds else NOTHING)
            case nodes.Assign():
                self._needs_nothing(node.node)
            case nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute())):
                self.statements(node.body)  # {% generation %}
            case nodes.Macro() | nodes.CallBlock() | nodes.AssignBlock() | nodes.FilterBlock():
                self._needs_nothing(node)
            case nodes.ExprStmt():
                self._needs_nothing(node.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _Unknown

    def _loop(self, node: nodes.For) -> None:
        kinds = self._kinds(node.iter)
        if kinds and not (kinds == LIST and isinstance(node.target, nodes.Name)):
            raise _Unknown
        if kinds == LIST and isinstance(node.target, nodes.Name):
            self._learn(node.target.name, MESSAGE)
        if node.test is not None:
            self._decides(node.test)
        self.statements([*node.body, *node.else_])

    def _learn(self, name: str, kinds: Kinds) -> None:
        """A namespace and `loop` have no second name, under which contents could pass unseen."""
        if kinds & (NAMESPACE | LOOP) or name == "loop":
            raise _Unknown
        self.names[name] = self.names[name] | kinds

    def _needs_nothing(self, node: nodes.Node) -> None:
        """A part of the template that must not see anything of contents."""
        for name in node.find_all(nodes.Name):
            if self.names[name.name]:
                raise _Unknown

    def _decides(self, test: nodes.Node) -> None:
        """A condition: contents may only be asked whether they are there, which is always so."""
        self._kinds(test)

    def _kinds(self, node: nodes.Node) -> Kinds:
        """What of the contents an expression holds."""
        match node:
            case nodes.Const() | nodes.TemplateData():
                return NOTHING
            case nodes.Name():
                return self.names[node.name]
            case nodes.Getitem() | nodes.Getattr():
                return self._member(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Call():
                return self._call(node)
            case nodes.Test():
                return self._test(node)
            case nodes.Concat():
                return self._joined(node.nodes)
            case nodes.Add():
                return self._joined([node.left, node.right])
            case nodes.CondExpr():
                self._decides(node.test)
                other = self._kinds(node.expr2) if node.expr2 is not None else NOTHING
                return self._kinds(node.expr1) | other
            case nodes.And() | nodes.Or():
                return self._kinds(node.left) | self._kinds(node.right)
            case nodes.Not():
                self._kinds(node.node)
                return NOTHING
            case nodes.Compare():
                for part in (node.expr, *(operand.expr for operand in node.ops)):
                    if self._kinds(part):
                        raise _Unknown
                return NOTHING
            case _:
                for child in node.iter_child_nodes():
                    if self._kinds(child):
                        raise _Unknown
                return NOTHING

    def _joined(self, parts: Iterable[nodes.Node]) -> Kinds:
        kinds = NOTHING.union(*(self._kinds(part) for part in parts))
        if not kinds <= CONTENT:
            raise _Unknown
        return kinds

    def _member(self, node: nodes.Getitem | nodes.Getattr) -> Kinds:
        if isinstance(node, nodes.Getitem) and self._kinds(node.arg):
            raise _Unknown
        owner = node.node.name if isinstance(node.node, nodes.Name) else None
        base, key = self._kinds(node.node), _key(node)
        if base == LIST and isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                return LIST
            return NOTHING if self._head_is_system and owner == "messages" and key == 0 else MESSAGE
        if not base:
            return self.names[f"{owner}.{key}"] if owner else NOTHING
        if not isinstance(key, str):
            raise _Unknown
        if base == NAMESPACE and owner:
            return self.names[f"{owner}.{key}"]
        if base == LOOP and owner:
            return MESSAGE if key in ("previtem", "nextitem") else NOTHING
        if base == MESSAGE and not hasattr(dict, key):
            return CONTENT if key == "content" else NOTHING
        raise _Unknown

    def _filter(self, node: nodes.Filter) -> Kinds:
        if node.node is None:
            raise _Unknown
        base = self._kinds(node.node)
        for argument in [*node.args, *(pair.value for pair in node.kwargs)]:
            if self._kinds(argument):
                raise _Unknown
        match node.name:
            case "length" | "count" if base == LIST:
                return NOTHING
            case "first" | "last" if base == LIST:
                return MESSAGE
            case "list" if base == LIST:
                return LIST
            case "trim" if base == CONTENT and not node.args and not node.kwargs:
                return CONTENT
            case _ if base:
                raise _Unknown
            case _:
                return NOTHING

    def _call(self, node: nodes.Call) -> Kinds:
        called = node.node
        arguments = [*node.args, *(pair.value for pair in node.kwargs)]
        if any(self._kinds(argument) for argument in arguments) or node.dyn_args or node.dyn_kwargs:
            raise _Unknown
        if not isinstance(called, nodes.Getattr):
            if self._kinds(called):
                raise _Unknown
            return NOTHING
        base = self._kinds(called.node)
        constants = tuple(argument.value for argument in arguments if isinstance(argument, nodes.Const))
        if base == CONTENT and called.attr in _STRIPS and len(constants) == len(arguments) and constants in _STRIPPED:
            return CONTENT
        if base:
            raise _Unknown
        return NOTHING

    def _test(self, node: nodes.Test) -> Kinds:
        if self._kinds(node.node) and node.name not in _TYPE_TESTS:
            raise _Unknown
        if any(self._kinds(argument) for argument in [*node.args, *(pair.value for pair in node.kwargs)]):
            raise _Unknown
        return NOTHING

    def _asks_head(self, test: nodes.Node) -> bool:
        """Whether a condition holds only where the first message is a system message."""
        match test:
            case nodes.And():
                return self._asks_head(test.left) or self._asks_head(test.right)
            case nodes.Compare(
                expr=(nodes.Getattr() | nodes.Getitem()) as role,
                ops=[nodes.Operand(op="eq", expr=nodes.Const(value="system"))],
            ) if _key(role) == "role":
                head = role.node
                return (
                    self._head_is_told
                    and isinstance(head, nodes.Getitem)
                    and _key(head) == 0
                    and isinstance(head.node, nodes.Name)
                    and head.node.name == "messages"
                )
        return False


def _key(node: nodes.Getitem | nodes.Getattr) -> object:
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) else None
