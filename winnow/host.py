"""The optimizer as host: its hooks carry every step, its state carries the factors.

Between two steps the optimizer is an ordinary one: `param_groups` hold the model's own weights, so `zero_grad`,
gradient scalers, clipping and schedulers see what they always see, and everything of ours lies under the key "winnow":
tensors in `optimizer.state[weight]`, numbers in `param_groups[0]`.  Only while `step` runs do the factors stand in the
weights' places (`Stage`), in groups of the same settings but without weight decay (a decoupled decay on a factor would
change the penalty; the coupled one is L2 on the weight, and is already in the pulled gradient).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from winnow import checkpoint
from winnow.checkpoint import KEY
from winnow.errors import AttachError, GradientError, warn
from winnow.fused import Fused
from winnow.routes.base import Lane, WeightLane
from winnow.routes.factored import FactoredLane
from winnow.routes.moment import ENTRYWISE, Moment, flow_rate, ridge_of
from winnow.schedules import Clock
from winnow.stage import Stage
from winnow.watch import check_finite

EAGER = "Winnow's hooks swap weights and factors; compile optimizer.step without fullgraph=True, or not at all"


@final
class Host:
    """Runs the lanes inside one optimizer's steps; `look(lanes, step)` is called before and `advance(host)` after each."""

    def __init__(
        self,
        optimizer: Optimizer,
        lanes: Sequence[Lane],
        fused: Fused | None,
        look: Callable[[Sequence[Lane], int], None],
        advance: Callable[[Host], None],
    ) -> None:
        self.optimizer = optimizer
        self.lanes = list(lanes)
        self.fused = fused
        self.look = look
        self.advance = advance
        self.stage = Stage(optimizer, self.lanes)
        self._versions: dict[int, int] = {}
        self._active: list[tuple[Lane, Moment]] = []
        self._fused: list[tuple[Lane, Moment]] = []
        self._dead: list[tuple[Lane, Tensor]] = []
        self._incoming: Mapping[str, Any] | None = None
        self._overwritten: dict[str, int] = {}
        """Names of weights that differed from the checkpoint's factors, and their version right after it was loaded."""
        self._handles: list[Any] = []

    # ---- what is kept where ------------------------------------------------------------------------------------

    @property
    def record(self) -> Mapping[str, Any]:
        """Our numbers; replaced, never changed, so that a state_dict taken earlier stays what it was."""
        return self.optimizer.param_groups[0][KEY]  # type: ignore[no-any-return]

    def write(self, **changes: Any) -> None:
        """Replace some of our numbers; the lanes hear of a new strength at once, as the next forward pass needs it."""
        first = self.optimizer.param_groups[0]
        first[KEY] = {**first.get(KEY, {}), **changes}
        if "strength" in changes:
            for lane in self.lanes:
                lane.open(self.moment(lane))

    @property
    def clock(self) -> Clock:
        record = self.record
        return Clock(record["step"], record["flow"], record["dose"], record["memory"])

    @property
    def frozen(self) -> bool:
        return bool(self.record["frozen"])

    def moment(self, lane: Lane, scale: float | Tensor = 1.0) -> Moment:
        record, group = self.record, self.stage.group(lane)
        return Moment(record["strength"], record["step"], group, scale, ridge_of(self.optimizer, group))

    def rate(self) -> float:
        """Flow rate of the coming step, averaged over the weights."""
        sizes = [lane.site.theta.numel() for lane in self.lanes]
        rates = [flow_rate(self.stage.group(lane)) for lane in self.lanes]
        return sum(s * r for s, r in zip(sizes, rates, strict=True)) / sum(sizes)

    def bag(self, lane: Lane) -> dict[str, Any]:
        """Our tensors in the optimizer's state for the lane's weight."""
        return self.optimizer.state[lane.site.anchor].setdefault(KEY, {})  # type: ignore[no-any-return]

    def state(self, lane: Lane) -> dict[str, Any]:
        """What the optimizer remembers of the weight, or per coordinate of its factors."""
        if lane.coordinates():
            bag = self.bag(lane)
            own = {name: bag[name]["state"] for name in lane.coordinates()}
            if lane.site.shares and isinstance(lane, WeightLane):
                inner: dict[str, Any] = own["w"]
                return inner
            return {**self.optimizer.state[lane.site.anchor], **own}
        state: dict[str, Any] = self.optimizer.state[lane.site.anchor]
        return state

    # ---- open and close ----------------------------------------------------------------------------------------

    def install(self, strength: float) -> None:
        """Take the factors' places in the optimizer's state and hang the hooks."""
        optimizer = self.optimizer
        sites = {lane.site.name: str(lane) for lane in self.lanes}
        numbers = {"step": 0, "flow": 0.0, "dose": 0.0, "memory": {}, "frozen": False}
        self.write(**numbers, strength=strength, pressed=strength, sites=sites)
        for lane in self.lanes:
            if not lane.steps_weight:
                optimizer.state.pop(lane.site.anchor, None)  # the weight's momentum means nothing to its factors
            for share in lane.site.shares:
                if share.whole:
                    optimizer.state.pop(share.weight, None)
            self.stage.shelve(lane, {})
            self._versions[id(lane)] = lane.site.version
        eager: Any = partial(torch.compiler.disable, reason=EAGER)  # here and not above: it costs seconds to import
        self._handles = [
            optimizer.register_step_pre_hook(eager(self._pre)),
            optimizer.register_step_post_hook(eager(self._post)),
            optimizer.register_state_dict_pre_hook(lambda _: self.stage.leave()),  # a step may have been interrupted
            optimizer.register_load_state_dict_pre_hook(self._load_pre),
            optimizer.register_load_state_dict_post_hook(self._load_post),
        ]

    def remove(self) -> None:
        """Give the optimizer back as it was, without our state."""
        self.stage.leave()
        for handle in self._handles:
            handle.remove()
        for lane in self.lanes:
            lane.close()
            state = self.optimizer.state[lane.site.anchor]
            state.pop(KEY, None)
            if not state:
                del self.optimizer.state[lane.site.anchor]
        self.optimizer.param_groups[0].pop(KEY, None)

    # ---- one step ----------------------------------------------------------------------------------------------

    def _pre(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self.stage.leave()  # an exception may have left the last step half-way
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._begin()
            return None

        def wrapped() -> Any:
            if self.stage.swapped:
                self.stage.leave()
                raise AttachError(
                    f"{type(optimizer).__name__} looks at the loss more than once in a step; the factors stand in the "
                    "weights' places only once. Use SGD, Adam, AdamW or any other first-order optimizer"
                )
            loss = closure()
            self._begin()
            return loss

        return (args[0],), {**kwargs, "closure": wrapped}

    @torch.no_grad()
    def _begin(self) -> None:
        optimizer = self.optimizer
        self._compare()
        scale = getattr(optimizer, "grad_scale", None)
        self._active, self._fused = [], []
        for lane in self.lanes:
            lane.site.collect()
            grad = lane.site.theta.grad
            if grad is None:
                for factor in lane.coordinates().values():
                    factor.grad = None  # what rests, rests as a whole
                continue
            if grad.is_sparse:
                raise GradientError(f"{lane.site.name!r} has a sparse gradient; build its embedding with sparse=False")
            self._notice_change(lane)
            moment = self.moment(lane, 1.0 if scale is None else scale.to(grad.device))
            fits = self.fused is not None and scale is None and self.fused.fits(lane, moment)
            (self._fused if fits else self._active).append((lane, moment))
        if getattr(optimizer, "found_inf", None) is None:  # else the gradient scaler has looked
            check_finite([lane for lane, _ in (*self._active, *self._fused)], self.record["step"])
        self.look([lane for lane, _ in (*self._active, *self._fused)], self.record["step"])
        factored = [] if isinstance(optimizer, ENTRYWISE) else [x for x in self.lanes if isinstance(x, FactoredLane)]
        self._dead = [(x, x.energy() == 0) for x in factored]  # a zero product of live factors is only passing through
        grads = [(lane, moment, lane.site.theta.grad) for lane, moment in self._active]
        for lane, moment in self._active:
            lane.before(moment)
            if isinstance(lane, WeightLane):
                lane.site.theta.grad = moment.whole_gradient(lane.site.theta)
        self.stage.enter(grads, [lane for lane, _ in self._fused])

    def _post(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.stage.swapped:
            return
        self.stage.leave()
        found = getattr(optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            return  # the optimizer skipped this step, and so do we
        with torch.no_grad():
            for lane, moment in self._fused:
                assert self.fused is not None
                self.fused.step(lane, moment, self.state(lane))
            for lane, moment in self._active:
                lane.after(moment, self.state(lane))
            for lane, dead in self._dead:
                lane.zero(dead, self.state(lane))
            for lane in self.lanes:
                self._hold_zeros(lane)
                lane.site.scatter()
            self.advance(self)
            for lane, _ in (*self._active, *self._fused):  # the others' changes, if any, are still to be noticed
                self._versions[id(lane)] = lane.site.version

    def _compare(self) -> None:
        """After a checkpoint was loaded: was the model's state_dict loaded as well, before or since?"""
        left = [lane.site for lane in self.lanes if self._overwritten.get(lane.site.name) == lane.site.version]
        self._overwritten = {}
        if left:
            warn(
                f"the optimizer's checkpoint held other weights than the model for {left[0].name!r} ({len(left)} of "
                f"{len(self.lanes)} such), which are the checkpoint's now; everything else is the model's. Load the model's "
                "state_dict of the same moment too"
            )

    def _notice_change(self, lane: Lane) -> None:
        """Weights written by somebody else since the last push: start the factors again from what is there now."""
        if self._versions[id(lane)] == lane.site.version:
            return
        lane.site.gather()
        if not lane.agrees():
            warn(
                f"{lane.site.name!r} was changed outside the optimizer at step {self.record['step']}; what is "
                f"stepped in its place ({', '.join(lane.coordinates())}) starts again from the new weights"
            )
            lane.restart()

    def _hold_zeros(self, lane: Lane) -> None:
        """Frozen zeros of a weight that steps itself (a product of zero factors holds by itself, entry by entry)."""
        alive = self.optimizer.state.get(lane.site.anchor, {}).get(KEY, {}).get("alive")
        if alive is not None:
            lane.site.groups.split(lane.site.theta).mul_(alive)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _load_pre(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        self.stage.leave()  # a step may have been interrupted
        entries = checkpoint.plain_entries(state_dict, self.record["sites"], self.lanes, optimizer)
        self._incoming = state_dict
        return entries

    def _load_post(self, optimizer: Optimizer) -> None:
        """Exact values: torch casts what it loads to the weight's dtype, which masks and float32 factors must not be."""
        assert self._incoming is not None
        saved, self._incoming = self._incoming, None
        for lane, shelf in zip(self.lanes, checkpoint.shelves(saved, self.lanes, self.optimizer), strict=True):
            lane.site.gather()
            for name, factor in lane.coordinates().items():
                factor.data.copy_(shelf[name]["value"])
            lane.restore({name: value for name, value in shelf.items() if isinstance(value, Tensor)})
            self.stage.shelve(lane, shelf)
            if not lane.agrees():  # else to the last bit what was saved with it
                lane.push()
                self._overwritten[lane.site.name] = lane.site.version
            self._versions[id(lane)] = lane.site.version
            lane.open(self.moment(lane))
