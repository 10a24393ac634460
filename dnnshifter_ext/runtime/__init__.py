"""Modules 8 and 9: the portfolio in use. One variant answers; another takes its place when the load changes.

    with Runtime('vgg16.dnns', backend='numpy', policy=QPSTrend()) as runtime:
        logits = runtime.infer(images)                       # from any number of threads
        runtime.switch_to('smaller'); runtime.stats(); runtime.prometheus()

The parts: `policies` decide, as pure functions of a history and a clock; `store` holds the package deflated and says
what memory is used for; `backends` make variants into functions of a batch; `monitor` counts queries; `runtime` puts a
variant in the place of another. Only the torch back end imports torch.
"""

from dnnshifter_ext.runtime.policies import Fixed, History, LatencyTarget, Policy, QPSTrend, SwitchDecision
from dnnshifter_ext.runtime.runtime import Answer, Runtime
from dnnshifter_ext.runtime.stats import Stats, SwitchRecord

__all__ = ['Answer', 'Fixed', 'History', 'LatencyTarget', 'Policy', 'QPSTrend', 'Runtime', 'Stats', 'SwitchDecision',
           'SwitchRecord']
