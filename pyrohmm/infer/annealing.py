"""Annealing of the KL term: latent sites count for less at first, the likelihood always in full."""

from collections.abc import Callable, Collection
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

Weight = int | Callable[[int], float]


def weight_at(step: int, annealing: Weight | None) -> float:
    """The weight of the KL at a step, counted from 1; see `pyrohmm.fit_svi`.

    Raises:
        ValueError: a function's weight is not in [0, 1].

    Example:
        >>> [weight_at(step, 4) for step in (1, 2, 4, 9)], weight_at(1, None)
        ([0.25, 0.5, 1.0, 1.0], 1.0)
    """
    if annealing is None:
        return 1.0
    if not callable(annealing):
        return min(1.0, step / annealing)
    weight = float(annealing(step))
    if not 0 <= weight <= 1:
        raise ValueError(f"annealing: expected a weight from 0 to 1, got {weight} at step {step}")
    return weight


class Annealing:
    r"""A model and a guide whose ELBO gives a weight to its KL term.

    .. math::
        E_q\big[\log p(x \mid h) + \beta\,(\log p(h) - \log q(h))\big]

    with h the latent sites of the guide, or the chosen ones of these. What the guide does not sample, such as the
    factor of a `pyrohmm.markov` loop or states that an ELBO enumerates, belongs to the likelihood. The weight scales
    the sites of the programs, so that it holds for every ELBO that is made of their log-densities.

    Args:
        model: a Pyro program.
        guide: a Pyro program of the same arguments, to be run before the model.
        sites: names of sites of the guide; None for all.

    Attributes:
        weight: beta, from 0 to 1.
        programs: the model and the guide with it.

    Raises:
        ValueError: (when the programs run) a chosen site that the guide does not sample, or that it draws together
            with others in one site.

    Reference:
        Bowman et al. (2016), "Generating sentences from a continuous space".

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model():
        ...     h = pyro.sample("h", dist.Normal(2.0, 1.0))
        ...     pyro.sample("x", dist.Normal(h, 1.0), obs=torch.tensor(0.0))
        >>> annealing = Annealing(model, lambda: pyro.sample("h", dist.Delta(torch.tensor(0.0))))
        >>> found = []
        >>> for annealing.weight in (1.0, 0.5, 0.0):
        ...     found.append(round(Trace_ELBO().loss(*annealing.programs), 4))
        >>> found
        [3.8379, 2.3784, 0.9189]
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], sites: Collection[str] | None = None):
        self.weight = 1.0
        self.sites = sites
        self.proposed: dict[str, bool] = {}  # latent sites of the guide -> whether they are auxiliary
        self.programs = _Weighed(self, False)(model), _Weighed(self, True)(guide)

    def counts(self, name: str) -> bool:
        """Whether the weight is for this site."""
        if name not in self.proposed or self.sites is None:
            return name in self.proposed
        # Pyro's guides draw a constrained site by an auxiliary one.
        return name in self.sites or (self.proposed[name] and name.removesuffix("_unconstrained") in self.sites)

    def check(self) -> None:
        """A ValueError unless the chosen sites are sites of the guide, with a density of their own."""
        if self.sites is None:
            return
        if missing := sorted(set(self.sites) - self.proposed.keys()):
            raise ValueError(f"annealed: expected latent sites of the guide, {list(self.proposed)}, got {missing}")
        other = [name for name, auxiliary in self.proposed.items() if auxiliary and not self.counts(name)]
        joint = [name for name in other if name.removesuffix("_unconstrained") not in self.proposed.keys() - {name}]
        if joint:
            raise ValueError(
                f"annealed: expected a guide that draws each site by itself, got {joint}, which may be the density of "
                f"{list(self.sites)} too; use another guide, or name all sites that are drawn by it, and it"
            )


class _Weighed(Messenger):
    """The handler of one of the programs. Names are noted in the guide, for the model runs after it."""

    def __init__(self, annealing: Annealing, guide: bool):
        super().__init__()
        self.annealing, self.guide = annealing, guide

    def __enter__(self) -> Any:
        if self.guide:
            self.annealing.proposed.clear()
        else:
            self.annealing.check()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if self.guide:
            self.annealing.proposed[msg["name"]] = bool((msg["infer"] or {}).get("is_auxiliary"))
        if self.annealing.counts(msg["name"]):
            msg["scale"] = msg["scale"] * self.annealing.weight
