"""The proof that contents only flow out: it holds for plain templates, and for none that looks at contents."""

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_tools.flow import contents_only_flow_out

NAMESPACE = "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = m.content %}{% endfor %}"
SYSTEM = "{% if messages[0].role == 'system' %}"


def proved(source: str) -> bool:
    return contents_only_flow_out(ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role + m['content'] | trim }}{{ m.content.strip('\n') ~ '</s>' }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string and m.content %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages[1:] %}{{ loop.previtem.content if not loop.first }}{{ m.content }}{% endfor %}",
        "{% for i in range(messages | length) %}{{ messages[i].content }}{% endfor %}",
        "{{ (messages | first).content }}{{ (messages | last).content if tools else 'none' }}",
        NAMESPACE + "{{ ns.x }}{% if ns.x %}x{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n == 2 }}",
        "{% macro f(tool) %}{{ tool | tojson }}{% endmacro %}{{ f(tools) }}{{ messages[0].content }}",
        SYSTEM + "{% if '/think' in messages[0].content %}{{ messages[0].content | upper }}{% endif %}{% endif %}",
    ],
)  # fmt: skip
def test_contents_that_are_written_or_stripped(source: str) -> None:
    assert proved(source)


@pytest.mark.parametrize(
    "expression",
    [
        "m.content | upper",
        "m.content | length",
        "m.content[:9]",
        "m.content.split('</think>')[-1]",
        "m.content.strip('.')",
        "m.content.strip",
        "m.content * 2",
        "'%s' % m.content",
        "'a' in m.content",
        "m.content == 'a'",
        "'a' is in(m.content)",
        "'a' is eq m.content",
        "{'a': 'b'}[m.content]",
        "{'a': m.content} | tojson",
        "tools[m.content]",
        "messages[:(m.content | length)] | length",
        "'a'.join(m.content)",
        "raise_exception(m.content)",
        "m | tojson",
        "m.items() | list",
        "(m.get or m)('content') | upper",
        "m['con' ~ 'tent'] | upper",
        "(m | attr('content')) | upper",
        "messages | map(attribute='content') | join",
        "messages | selectattr('content', 'eq', 'a') | list",
        "messages",
        "m in messages",
        "loop['prev' ~ 'item'].content | upper",
        "(loop | attr('previtem')).content | upper",
        "loop.changed(m.content)",
    ],
)
def test_expressions_that_do_more_with_contents(expression: str) -> None:
    assert not proved("{% for m in messages %}{{ " + expression + " }}{% endfor %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages if m.content != 'a' %}{% endfor %}",
        "{% for c in messages[0].content %}x{% endfor %}",
        "{% for m in messages %}{% for k, v in m.items() %}{{ v | upper }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set l = loop %}{{ l.previtem.content | upper }}{% endfor %}",
        "{% set loop = messages[0] %}{{ loop.content | upper }}",
        "{% for m in messages %}{% set get = m.get %}{{ get('content') | upper }}{% endfor %}",
        "{% set x %}{{ messages[0].content }}{% endset %}{{ x | upper }}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
        "{% macro f(m) %}{{ m.content | upper }}{% endmacro %}{{ f(messages[0]) }}",
        "{% macro f(a=messages[0].content) %}{{ a | upper }}{% endmacro %}{{ f() }}",
        "{% with a = messages[0].content %}{{ a | upper }}{% endwith %}",
        "{% set a, b = messages[0].content, 1 %}{{ a | upper }}",
        "{% set all = [messages[0].content] %}{{ all | join | upper }}",
        NAMESPACE + "{{ ns.x | upper }}",
        NAMESPACE + "{{ ns }}",
        NAMESPACE + "{{ ns['x' ~ ''] | upper }}",
        NAMESPACE + "{{ (ns | attr('x')) | upper }}",
        NAMESPACE + "{{ (ns or 1).x | upper }}",
        NAMESPACE + "{% set other = ns %}{{ other.x | upper }}",
        NAMESPACE + "{% set a, b = ns.x, 1 %}{{ a | upper }}",
        NAMESPACE + "{% set y %}{{ ns.x | upper }}{% endset %}{{ y }}",
        NAMESPACE + "{% filter upper %}{{ ns.x }}{% endfilter %}",
        NAMESPACE + "{% macro f() %}{{ ns.x | upper }}{% endmacro %}{{ f() }}",
        NAMESPACE + "{% macro f() %}{{ caller() | upper }}{% endmacro %}{% call f() %}{{ ns.x }}{% endcall %}",
        SYSTEM + "{% set rest = messages[1:] %}{{ rest[0].content | upper }}{% endif %}",
        SYSTEM + "{{ (messages[1:])[0].content | upper }}{% endif %}",
        SYSTEM + "{{ messages[1].content | upper }}{% endif %}",
        SYSTEM + "{% set messages = messages[1:] %}{{ messages[0].content | upper }}{% endif %}",
        SYSTEM + "{% endif %}{{ messages[0].content | upper }}",
        SYSTEM + "{% else %}{{ messages[0].content | upper }}{% endif %}",
        "{% if messages[0].role == 'system' or tools %}{{ messages[0].content | upper }}{% endif %}",
    ],
)
def test_contents_do_not_slip_away_under_another_name(source: str) -> None:
    assert not proved(source)
