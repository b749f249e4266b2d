"""Every call of the algebra with every kind of junk, without type checks in between: prints what is no RMuseError."""

import torch

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read

V = torch.randn(8)
GATE = Gate(LinearDiscriminant(V, 0.0), Read(1, "last"), 0.0)
EDIT = op.Add(V).at(2).named("one")
PLAN = EDIT >> op.SlerpToward(V, FixedFraction(0.5)).at([1, 3]).when(GATE).named("two")

JUNK = [
    *(None, True, -1, 3, 2.5, float("nan"), "x", "", "blocks.1.hook_nothing", b"y"),
    *([], [1, 1], ["a"], [None], {}, {"a": 1}, (), range(0), object(), lambda h: h),
    *(torch.ones(3), torch.ones(2, 2).bool(), int, Site, op.Add, op.Add(V), GATE, EDIT, PLAN),
]
CALLS = {
    "Operator.at": op.Add(V).at,
    "Operator >>": lambda x: op.Add(V) >> x,
    "on": EDIT.on,
    "on(positions=)": lambda x: EDIT.on(positions=x),
    "on(mask=)": lambda x: EDIT.on(mask=x),
    "on(delimiters=)": lambda x: EDIT.on("chain", delimiters=x),
    "given": EDIT.given,
    "when": EDIT.when,
    "when(per=)": lambda x: EDIT.when(GATE, per=x),
    "named": EDIT.named,
    "Edit >>": lambda x: EDIT >> x,
    ">> Edit": lambda x: x >> EDIT,
    "Plan >>": lambda x: PLAN >> x,
    "Plan.without": PLAN.without,
    "Edit.without": EDIT.without,
    "replace a gate": lambda x: PLAN.replace(gate=x),
    "replace an edit": lambda x: PLAN.replace(one=x),
    "replace nothing": lambda x: PLAN.replace(nothing=x),
    "replace operators": lambda x: PLAN.replace(**{"*.operator": x}),
    "Edit.replace": lambda x: EDIT.replace(operator=x),
    "Edit.changed(operators=)": lambda x: EDIT.changed(operators=x),
    "Edit.changed(groups=)": lambda x: EDIT.changed(groups=x),
    "operator_at": EDIT.operator_at,
    "attach": EDIT.attach,
    "install": PLAN.install,
    "fwd_hooks": PLAN.fwd_hooks,
    "decide": lambda x: PLAN.decide(x, "Who?"),
    "as_plan": as_plan,
    "Plan": Plan,
    "Plan([])": lambda x: Plan([x]),
    "layerwise": op.layerwise,
    "layerwise({1:})": lambda x: op.layerwise({1: x}),
    "Site": Site,
    "Site(1, )": lambda x: Site(1, x),
    "Site.parse": Site.parse,
    "Set": op.Set,
    "Call": op.Call,
}

if __name__ == "__main__":
    refused = 0
    for name, call in CALLS.items():
        for one in JUNK:
            try:
                call(one)
            except RMuseError:
                refused += 1
            except Exception as error:
                print(f"{name} of {one!r}: {type(error).__name__}: {error}")
    print(f"refused {refused}")
