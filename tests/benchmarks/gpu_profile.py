"""Launches of each fused kernel, for a profiler to look at: the second of every pair is the warm one."""

from __future__ import annotations

import torch

from spectral_convert import route_arms

LAUNCHES = (
    (64, "gate", (8, 8), 1),
    (64, "gate", (16, 2), 1024),
    (64, "gate", (32, 4), 1024),
    (512, "gate", (8, 16), 1),
    (4096, "scan", (8, 1), 1024),
    (65_536, "search", (8, 1), 1024),
)


def main() -> None:
    with torch.inference_mode():
        for experts, kind, plan, batch in LAUNCHES:
            planted = route_arms.plant(experts, 1)
            route = (
                route_arms.fused_gate(planted, plan)
                if kind == "gate"
                else route_arms.geometric(planted, kind, plan)
            )
            x = route_arms.hidden_states(planted, batch, 0)
            for _ in range(2):
                route(x)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
