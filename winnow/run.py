"""`attach`: a model, its own optimizer, and the four words HOW, WHERE, WHEN; the `Run` it returns is the user's handle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from winnow.census import Census, Layer, as_local
from winnow.certificate import Certificate, certify
from winnow.checkpoint import KEY
from winnow.counts import Spending
from winnow.cut import smallest, whole
from winnow.errors import AttachError, ScheduleError, warn
from winnow.fused import Fused
from winnow.host import Host
from winnow.routes.base import Lane, Route, WeightLane
from winnow.routes.masking import rebalance
from winnow.routes.moment import group_of, ridge_of
from winnow.schedules import Clock, Constant, Schedule
from winnow.sites import Where, find_sites
from winnow.units import ATTACHED
from winnow.watch import Watch

SWEEP = 50
"""Steps between two searches for groups that have underflown."""


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    how: Route,
    where: Where,
    when: Schedule | float,
    fused: bool | None = None,
) -> Run:
    """Train `model` sparse with its own `optimizer`, in the loop you have.

    From now on every `optimizer.step()` descends F(w) = L(w) + λ·ΣΩ(‖w_g‖); the model, its `state_dict` keys and its
    outputs are unchanged.  `how` is a route (`Gating(depth=3)`), `where` a grouping for every weight of two or more
    dimensions or a mapping from name pattern to grouping, `when` a strength λ, a schedule, or a target
    (`Toward(density=0.1, steps=10_000)`).  `fused=None` takes the compiled one-pass step where it pays, `True` insists
    on it, `False` never does.  A coupled `weight_decay` (SGD's, Adam's) is L2 on the weight, part of L; a decoupled one
    (AdamW's) is off for penalised weights while attached.

    Raises `AttachError`, `GroupError`, `PenaltyError` or `ScheduleError` before anything is changed.
    """
    schedule = _schedule(when)
    _check_optimizer(optimizer)
    if not isinstance(model, nn.Module):
        raise AttachError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(how, Route):
        raise AttachError(f"how must be a route such as Gating(depth=3), got {how!r}")
    schedule = schedule.suit(how.pace)
    sites, spending = find_sites(model, optimizer, where)
    for site in sites:
        how.check(site, optimizer)
    chosen = Fused.choose(fused, optimizer, sum(site.theta.numel() for site in sites))
    lanes = [how.lane(site, optimizer) for site in sites]
    run = Run(optimizer, how, schedule, lanes, chosen, spending)
    run.watch.start(sites, schedule.target, run.floor)
    for site in sites:
        for theta in site.weights:
            setattr(theta, ATTACHED, True)
    return run


def _schedule(when: Schedule | float) -> Schedule:
    if isinstance(when, Schedule):
        return when
    if isinstance(when, (int, float)) and not isinstance(when, bool):
        return Constant(float(when))
    raise ScheduleError(
        f"when must be a strength, a schedule or a target, got {when!r}; try 1e-4 or Toward(density=0.1, steps=…)"
    )


def _check_optimizer(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise AttachError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, (LBFGS, SparseAdam)):
        raise AttachError(
            f"{type(optimizer).__name__} cannot carry factors (it takes several looks at the loss, or sparse gradients); "
            "use SGD, Adam, AdamW or any other first-order optimizer"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise AttachError(
            "this optimizer maximizes, but F(w) = L(w) + λΩ(w) is to be minimised; give minus the objective as loss, "
            "and maximize=False"
        )
    if KEY in optimizer.param_groups[0]:
        raise AttachError(
            "this optimizer has a run attached already, or was loaded from a checkpoint of one; call run.settle() or "
            "run.release() first, or, to resume, attach a fresh optimizer and then optimizer.load_state_dict(checkpoint)"
        )


@final
class Run:
    """A training under way. Everything that must survive a restart lies in the optimizer's `state_dict`."""

    def __init__(
        self,
        optimizer: Optimizer,
        how: Route,
        schedule: Schedule,
        lanes: list[Lane],
        fused: Fused | None,
        spending: Spending | None,
    ) -> None:
        self.optimizer, self.how, self.schedule = optimizer, how, schedule
        self._lanes = lanes
        self._open = True
        self._last, self._last_pressed = (0.0, Clock()), 0.0
        self.watch = Watch(how, adaptive="betas" in optimizer.param_groups[0])
        self._census = Census(lanes, how, spending, self.watch.adaptive)
        self._host = Host(optimizer, lanes, fused, self.watch.gradients, self._advance)
        self._host.install(schedule.strength(Clock()))

    def __repr__(self) -> str:
        return f"<Run of {self.how}: {self.phase}, step {self.clock.step}, density {self.density():.4f}, λ {self.strength:.3g}>"

    # ---- what is going on --------------------------------------------------------------------------------------

    @property
    def strength(self) -> float:
        """λ of the coming step (of the last one, after `settle`)."""
        return float(self._host.record["strength"]) if self._open else self._last[0]

    @property
    def _pressed(self) -> float:
        """The last strength that was not zero: the one under which the zeros were chosen."""
        return self.strength or (float(self._host.record["pressed"]) if self._open else self._last_pressed)

    @property
    def clock(self) -> Clock:
        """Steps, flow time Σ lr/(1−μ) and dose Σ λ·lr/(1−μ) so far."""
        return self._host.clock if self._open else self._last[1]

    @property
    def dose(self) -> float:
        """Σ λ·lr/(1−μ)."""
        return self.clock.dose

    @property
    def phase(self) -> str:
        """One word for progress bars: what the schedule is doing."""
        return self.schedule.phase(self.clock) if self._open else "settled"

    @property
    def threshold(self) -> float:
        """Group norms at or below this count as zero: float resolution of the weights (D-Gating section 2.4)."""
        return self._census.threshold

    @property
    def grain(self) -> float:
        """Largest share that one group holds: a density cannot be met any finer."""
        return self._census.grain

    @property
    def floor(self) -> float:
        """The smallest density there is: one group of every weight stays, and so does what cannot be removed."""
        return self._census.floor

    def density(self) -> float:
        """Share of the penalised weights' entries that lie in nonzero groups; of what `Channels` counts, if that is said."""
        return self._census.density(self._pressing)

    def layers(self) -> list[Layer]:
        """Per penalised weight, what is alive."""
        return self._census.layers(self._pressing)

    def masks(self) -> dict[nn.Parameter, Tensor]:
        """Per penalised weight, True at the entries whose group counts as nonzero: what `settle` would leave."""
        return self._census.masks(self._pressing)

    def balance(self) -> float:
        """λ at which the penalty's pull on the median live group equals the last gradients': the natural unit of λ."""
        return self._census.balance()

    @property
    def _pressing(self) -> float | None:
        """λ while the run is open; None once the weights belong to the user again."""
        return self.strength if self._open else None

    # ---- what the user may do ----------------------------------------------------------------------------------

    def feedback(self, score: float) -> None:
        """Once per epoch, for schedules that listen: training accuracy, or minus the training loss. Averaged over ranks."""
        self._must_be_open("feedback")
        score = _mean_over_ranks(score, self._lanes[0].site.theta.device)
        if math.isnan(score):
            raise ScheduleError(
                "feedback needs a number, got nan: give the training accuracy, or minus the training loss"
            )
        size = float(sum(whole(lane.site.theta.detach().abs().sum()) for lane in self._lanes))
        memory = self.schedule.feedback(self.clock, score, size)
        clock = Clock(self.clock.step, self.clock.flow, self.clock.dose, memory)
        self._host.write(memory=dict(memory), strength=self.schedule.strength(clock))

    def rebalance(self, beta: float = 1.0) -> None:
        """Masking route: set the gap m² − v² to `beta` again; the weights do not change."""
        self._must_be_open("rebalance")
        for lane in self._lanes:
            rebalance(lane, beta)

    def settle(self, threshold: float | None = None) -> Run:
        """Exact zeros for every group at or below `threshold`, and the optimizer released. Returns the run."""
        self._must_be_open("settle")
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ScheduleError(
                f"threshold must be a norm, finite and >= 0, got {threshold}; None takes float resolution"
            )
        target = self.schedule.target
        self.watch.replaced([lane.site for lane in self._lanes])
        if target is not None and not self._host.frozen:
            warn(
                f"settled at step {self.clock.step}, before {self.schedule} froze the zeros: cut to {target:g} by norm "
                "now, without healing; give Toward the number of steps that are really taken"
            )
            self.cut(target)
        for lane in self._lanes:
            dead = self._census.dead(lane, self._pressing, threshold)
            lane.zero(as_local(lane, dead), self._host.state(lane))
        self.release()
        layers = self.layers()
        alive, groups = sum(layer.alive for layer in layers), sum(layer.groups for layer in layers)
        self.watch.end(self.dose, self.strength, (alive, groups), (self.density(), target, self.grain))
        return self

    def release(self) -> None:
        """Give the optimizer back without touching the weights."""
        self._must_be_open("release")
        self._last, self._last_pressed = (self.strength, self.clock), self._pressed
        self._host.remove()
        self._open = False
        for theta in (theta for lane in self._lanes for theta in lane.site.weights):
            vars(theta).pop(ATTACHED, None)

    def certificate(self, closure: Callable[[], Tensor] | None = None) -> Certificate:
        """How well F was solved. `closure` returns the whole training loss; without it the last gradients left are used."""
        ridges = [ridge_of(self.optimizer, group_of(self.optimizer, lane.site.anchor)) for lane in self._lanes]
        return certify(self._lanes, self.how, (self.strength, self._pressed), self.threshold, closure, ridges)

    def cut(self, density: float) -> None:
        """Keep the largest groups by norm up to `density`, at least one per weight; zero the rest for good."""
        self._must_be_open("cut")
        if not 0 < density <= 1:
            raise ScheduleError(f"density must lie in (0, 1], got {density}; 0.1 keeps a tenth of the weights")
        self._cut(density, final=True)

    # ---- inside a step -----------------------------------------------------------------------------------------

    def _cut(self, density: float, final: bool) -> None:
        for lane in self._lanes:
            lane.site.gather()
        for lane, dead in zip(self._lanes, smallest(self._lanes, density, self._census.spending), strict=True):
            local = as_local(lane, dead)
            (lane.zero if final else lane.prune)(local, self._host.state(lane))
            if isinstance(lane, WeightLane):
                self._host.bag(lane)["alive"] = ~local
        self._host.write(frozen=density <= (self.schedule.target or density))

    def _advance(self, host: Host) -> None:
        """The step is taken: count it, ask the schedule, freeze or sweep, and set the strength of the next."""
        clock, rate = host.clock, host.rate()
        clock = Clock(clock.step + 1, clock.flow + rate, clock.dose + rate * self.strength, clock.memory)
        memory = self.schedule.observe(clock, self)
        clock = Clock(clock.step, clock.flow, clock.dose, memory)
        density = self.schedule.freeze(clock)
        if density is not None:
            self._cut(density, final=density <= (self.schedule.target or density))
        pressed, strength = self._pressed, self.schedule.strength(clock)
        host.write(
            step=clock.step, flow=clock.flow, dose=clock.dose, memory=dict(memory), strength=strength, pressed=pressed
        )
        if clock.step % SWEEP == 0:
            self._sweep()
            rows = [(layer.name, layer.alive, layer.groups) for layer in self.layers()]
            self.watch.layers(rows, clock.step, self.schedule.target)

    def _sweep(self) -> None:
        for lane in self._lanes:
            dead = lane.vanished()
            if dead is not None and bool(whole(dead.any())):
                lane.zero(dead, self._host.state(lane))

    def rate(self) -> float:
        """Present flow rate."""
        return self._host.rate()

    def _must_be_open(self, verb: str) -> None:
        if not self._open:
            raise AttachError(f"cannot {verb}: this run is settled and its optimizer released; attach again to go on")


def _mean_over_ranks(score: float, device: torch.device) -> float:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(score)
    total = torch.tensor(float(score), dtype=torch.float64, device=device)  # where the ranks talk: NCCL needs its GPU
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()
