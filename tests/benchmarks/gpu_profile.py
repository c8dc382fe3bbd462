"""One launch of each fused kernel, for a profiler to look at."""

from __future__ import annotations

import torch

from spectral_convert import route_arms


def main() -> None:
    with torch.inference_mode():
        for experts, kind in ((64, "gate"), (512, "gate"), (4096, "scan"), (65_536, "search")):
            planted = route_arms.plant(experts, 1)
            make = route_arms.fused_gate(planted) if kind == "gate" else route_arms.geometric(planted, kind)
            x = route_arms.hidden_states(planted, 1024, 0)
            for _ in range(3):
                make(x)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
