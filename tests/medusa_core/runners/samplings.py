"""All that a request may ask of sampling, in kinds that take different operations."""

from medusa_core.sampling import SamplingParams

SAMPLINGS = {
    "greedy": SamplingParams(0.0),
    "sampled": SamplingParams(0.8),
    "filtered": SamplingParams(1.0, top_p=0.9, top_k=12, min_p=0.02),
    "penalised": SamplingParams(
        0.7, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, logit_bias=((3, 4.0), (5, -9.0))
    ),
    "not yet at its end": SamplingParams(0.0, min_tokens=14),
}
