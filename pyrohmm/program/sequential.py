"""The plain form of the loop: one run of the body a step, sites named `z_0, x_0, z_1, ...`."""

from typing import Any

from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyrohmm.distributions.padding import fill_unread
from pyrohmm.program.loop import LoopMessenger


class SequentialLoop(LoopMessenger):
    """The handler of one step: names its sites, masks what lies past the lengths, asks for enumeration."""

    def begin(self, t: int) -> None:
        """Prepare for the run of the body at step t."""
        self.step = slice(t, t + 1)

    def _pyro_sample(self, msg: Any) -> None:
        if self.reuse_subsample(msg):
            return
        fn = msg["fn"]
        # The innermost loop names a site once for all loops around it: handlers between them must see one name.
        if not msg["infer"].get("_pyrohmm_named"):
            loops = [loop for loop in _PYRO_STACK if isinstance(loop, SequentialLoop)]
            name = msg["infer"]["_pyrohmm_named"] = msg["name"]
            if not msg["is_observed"] and len(loops) == 1:
                self.take_path(msg, name)
            msg["name"] += "".join(f"_{loop.step.start}" for loop in loops)
        read = self.read_mask(msg["mask"])
        if read is not None:
            if msg["is_observed"] and isinstance(msg["value"], Tensor):
                msg["value"] = fill_unread(msg["value"], read, fn)
            msg["mask"] = read if msg["mask"] is not False else False
        if not msg["is_observed"] and getattr(fn, "has_enumerate_support", False):
            msg["infer"].setdefault("enumerate", "parallel")

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        site = msg["infer"].get("_pyrohmm_named")
        if site is not None:
            self.remember(site, msg["value"])
