"""Every tolerance of the test suite, with its derivation. Nothing else in tests/ states a bound of its own.

eps is the machine epsilon of a dtype: 2**-52 fp64, 2**-23 fp32, 2**-10 fp16, 2**-7 bf16; one rounding errs by at most
eps/2. A bound follows from how many roundings there are and of what size, whatever order and instructions a processor
takes them in; what one machine happens to show is no bound. Where one constant is both rtol and atol, atol serves
entries that are small because terms of order 1 cancel. What holds bit by bit is asserted as equality.
"""

from __future__ import annotations

import math

import torch

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}

# fp64 formulas against independently written ones: a few hundred roundings of numbers of order 1.
FP64 = 1e-12

# fp32 formulas and sums of at most 8 terms written two ways: numbers of order 1, 16 roundings in the same direction.
# Chains of matrix products are no such formulas: they are compared in fp64, or judged by the error of plain torch.
FP32 = 8 * EPS[torch.float32]

# A block and a head of width 24 in fp32, computed by other ops of the same formula: a chain of 8 products and norms,
# each of at most 24 terms of order 1 and one rounding a term.
OTHER_PATH_FP32 = 8 * 24 * EPS[torch.float32]

# fp64 losses with row weights kept in fp32: 1/6 and the like are off by eps/2 relative, once on each of the two sides.
ROW_WEIGHT_FP32 = EPS[torch.float32]

# A weighted total of such losses, or the difference of two totals that share most of their terms.
ROW_WEIGHT_TOTAL_FP32 = 4 * ROW_WEIGHT_FP32

# Sums of 2500 products of order 1 in fp64, in another order: at most one rounding of a partial sum (below 8) per term.
SUM_OF_2500_ROWS_FP64 = 2500 * 8 * EPS[torch.float64]

# Finite differences against gradients, in fp64 at gradcheck's step of 1e-6: 64 roundings of a value up to 10, over
# twice the step.
FINITE_DIFFERENCE = 64 * 10 * (EPS[torch.float64] / 2) / (2 * 1e-6)

# A scan of d terms that sum to 1 errs by at most d*eps/2 in the worst order; in practice sqrt(d)*eps. Twice the worst
# case for d <= 64.
SCAN_FP32 = 64 * EPS[torch.float32]

# uni + paired against h: the scans of both gates (in fp64 for fp64, else in fp32) relative to |h|, plus one rounding
# per output in its own dtype.
SPLIT_SUM = {
    dtype: 64 * EPS[torch.float64 if dtype == torch.float64 else torch.float32] + 2 * eps for dtype, eps in EPS.items()
}

# The same for 12 gates in fp64: two scans of at most 12 eps/2 each.
SPLIT_12_FP64 = 12 * EPS[torch.float64]

# A fresh gate over 12 dimensions against 1/2: equal steps up to 1 have the mean 13/24. The initial bias of a linear
# layer of 12 inputs has the deviation 1 / 6; over 12 places of deviation sqrt(1/12) it moves the mean by 1/72, and what
# the weights add is the mean of 200 rows. Three and a half deviations.
FRESH_GATE_12 = 1 / 24 + 3.5 / 72

# What is asked of a share that is pulled to its target with a weight of 10, against the other losses.
TRAINED_SHARE = 0.03

# The root mean square of 20000 normal numbers of deviation sqrt(0.2): it varies by sqrt(0.2 / 40000); four of that.
DEVIATION_OF_20000 = 4 * math.sqrt(0.2 / 40000)

# What is asked of the mass that holds all that a modality tells. Targets of the others are 0.1 / 1.1, and no boundary
# is sharper than its width of 0.12: a gate that is wide open lets 1 - 0.117 through, of 32 dimensions.
SHARE_OF_THE_TRUTH = 0.85


def steps(d: int) -> float:
    """A mean over d equal steps of [0, 1] against the integral of a function that varies by 1: at most one step."""
    return 1 / d


# An op's error against fp64 is at most this many times the error of the same formula written in plain torch in the op's
# dtype, plus a floor of one rounding of a typical value (the plain form may be exact by luck); in root mean square.
TIMES_TORCH_ERROR = 2.0

# Draws of a case over which such errors are pooled. Even of one number a draw, the pooled errors of two computations of
# the same exactness differ by more than twice once in 200 (the F distribution of 16 and 16), without the floor.
DRAWS = 16

# The same of rows of thousands of entries, each of which is a draw already.
DRAWS_OF_WIDE_ROWS = 4

# Compiled or Triton kernel against reference, both accumulating in fp32 (fp64) and each within a scan's error of the
# exact value (70 eps/2 at 70 gates): 70. Gradients sum up to 2500 products of order 1 of both signs, whose roundings
# walk at random: sqrt(2500) eps/2 on each side, 50; they are compared relative to their largest entry, those of logits
# to summed_by_gates where that is larger. 16-bit outputs add a rounding each way, and the products of a gate three. In
# units of the output's eps:
NATIVE_TIMES_EPS = 128


def summed_by_gates(h) -> float:
    """Size of the sums whose differences a logit's gradient is: of a row's ``h`` times gradients of order 1 and of both
    signs, the root of the sum of squares. Where a gate opens at one place all of it cancels, and the roundings stay."""
    return h.double().norm(dim=-1).max().item() if h.numel() else 0.0


# exp(r) - 1 - r for r within 2 of 0, relative, in units of eps. By its series: a step adds 1 to what r/3 at most scales
# and rounds thrice, together (3/2) (3/2), then r r and the product, 1: below 5. Past 1, by exp: at -1, where least is
# left, exp errs by 1 of 0.37, for it rounds its argument and its result, and the differences by half a unit of 0.63 and
# of 0.37, below 3; at 2 by 3 of 7.4 and half of 6.4 and 4.4, below 8.
EXP_LESS_LINE = 8

# A sum of 17 such and its mean: 18 more roundings of half a unit. Its gradient is a sum and two products more.
DIVERGENCE_OF_17 = EXP_LESS_LINE + 9
GRADIENT_OF_DIVERGENCE = EXP_LESS_LINE + 2

# What a row of 40 fp32 exponentials loses to zero: less than the smallest normal number each.
ROW_OF_40_UNDERFLOWS = 40 * torch.finfo(torch.float32).tiny

# bf16 autocast against fp32, values and, relatively, means of them such as losses: three layers in a row, each of which
# rounds its input, its weights and its output by eps/2.
AUTOCAST_BF16 = 3 * 3 * EPS[torch.bfloat16] / 2

# Four steps of torch's two forms of an optimizer: FP32 of what they move, which is of the order of the rate, 0.1.
OPTIMIZER_MOVE_FP32 = 0.1 * FP32

# The same of any optimizer of optimizer_cases.py, by dtype. With momentum, gradients up to 4 move a parameter by the
# order of 1 at such a rate; and where two computations of a step straddle a tie of the parameter's own rounding, they
# differ by an eps of what four steps move, which a value near zero keeps in full.
OPTIMIZER_MOVE = {dtype: max(FP32, 4 * 0.1 * eps) for dtype, eps in EPS.items()}

# Two ranks against one process: sums of 16 rows in another order, each good to eps/2, over 18 steps of SGD.
TWO_RANKS = 18 * 16 * EPS[torch.float32] / 2

# Gradients of two batches of 16 added up against those of one of 32, over 6 updates of SGD: sums of 32 rows in another
# order, each good to eps/2.
ACCUMULATED = 6 * 32 * EPS[torch.float32] / 2

# Gradients of a batch of 8 padded to 12 by rows of weight 0 against those of the 8, through layers of up to 24: sums of
# 24 in another order, each good to eps/2, forth and back, relative to the largest.
PADDED = 2 * 24 * EPS[torch.float32] / 2

# An average of weights of order 1 after 6 updates in fp32, formed twice: three roundings an update on each side.
AVERAGED_WEIGHTS = 2 * 6 * 3 * EPS[torch.float32] / 2

# fp16 autocast against fp32, as AUTOCAST_BF16.
AUTOCAST_FP16 = 3 * 3 * EPS[torch.float16] / 2

# Two numbers that are printed with four digits after the point, and may fall on two sides of a half.
PRINTED_4 = 1e-4 + FP64

# Reports keep seven digits after the point; the slack of FP64 is for the test's own arithmetic.
ROUNDED_7 = 0.5e-7 + FP64

# Ratios in [0, 1] that torchmetrics forms and averages in fp32, eight roundings (of eps/2), kept to seven digits.
METRIC_FP32 = ROUNDED_7 + 4 * EPS[torch.float32]

# Two or four shares, each kept to seven digits, add up to 1.
SHARES_ROUNDED_7 = 4 * ROUNDED_7

# Shares of fp32 gates add up to 1: a scan's error, and the roundings above where they come from a report.
SHARE_SUM = SCAN_FP32 + SHARES_ROUNDED_7

# A similarity of unit vectors within this of the match's is a tie: fp32 sums in another order differ by less.
RANK_TIE = 1e-6

# The mean of 3000 equal numbers of 1e7 / 3 in fp64: 3000 roundings of eps/2 in the worst order, relative.
MEAN_OF_3000_FP64 = 3000 * (EPS[torch.float64] / 2) * 1e7 / 3

# A ResNet-18 in fp64 with other frames beside the same ones: 20 layers, sums of at most 512 x 3 x 3 products of order
# 1.
RESNET18_FP64 = 20 * 512 * 9 * EPS[torch.float64] / 2

# Predictions of the same rows in other batches, in fp32: products are summed in another order, at most ten in a row and
# of at most 64 terms of order 1 each.
OTHER_BATCH_FP32 = 10 * 64 * EPS[torch.float32] / 2

# Information by counting is high by about (cells - 1) / 2n: at most 8 cells, at least 3000 rows of a kind; four times
# that.
PLUG_IN_INFORMATION = 4 * (8 - 1) / (2 * 3000)


# Rows of a class or of all that a part gets when they are dealt: at either end of a stretch the pattern is within a row
# of its fractions, which are whole percents of its period of 100.
DEALT_ROWS = 2
DEALT_PART = 0.01

# Two fits of one logistic regression stop at gradients below 1e-4: of 360 digits those may be told apart whose best two
# logits are as near, three of them.
LOGISTIC_ACCURACY = 3.5 / 360

# A mean of standardised values is below this; with three tenths of its rows at 99 it would be 30.
STANDARDISED_MEAN = 1.0

# Quantiles of Student's distribution, which scipy finds by iteration in one way or another, relative.
T_QUANTILE = 1e-9


def frequency(p: float, n: int) -> float:
    """Four standard deviations of how often an event of probability p comes in n draws; 1 seed in 16000 exceeds it."""
    return 4 * math.sqrt(p * (1 - p) / n)


def mean_of_draws(deviation: float, n: int) -> float:
    """Four standard deviations of the mean of n draws that have this standard deviation each."""
    return 4 * deviation / math.sqrt(n)


# Results that must not be the same differ by more than this in some entry of order 1: 1e10 roundings.
DIFFERENT = 1e-2


# Runs of Adam that differ in the order of sums alone part by less than a thousandth of what unrelated ones may, 2 n lr.
def same_run(updates: int, lr: float) -> float:
    return 1e-3 * 2 * updates * lr


# a magnitude is at most 0.5 * sum(Hann window of 64) = 16; the transform and the logarithm each lose up to 8 eps of it
STFT_FP32 = 16 * 16 * EPS[torch.float32]
# of a Hann window of 512 eight times as large; the exponential takes the logarithm's rounding back with as much again
STFT_512_FP32 = 2 * 8 * STFT_FP32

# Mean and deviation of a clip that was standardised in fp64: each value, below 16, is rounded to fp32 by half an eps.
STANDARDISED_CLIP = 16 * EPS[torch.float32] / 2

# (255 x - 255 m) / 255 s in fp32 against (x - m) / s in fp64, x, m and s of a colour: four roundings of what is at most
# 1, over the least deviation.
COLOURS_FP32 = 4 * EPS[torch.float32] / 0.224

# log-magnitudes of a tone at 2 kHz of 8 kHz that was doubled in rate by straight lines: these weaken it by
# sinc^2(1/8) = 0.95 and no more, so that a tenth in the logarithm tells them from any other sound
RESAMPLED_LOG = 0.1

# A multi-rate optimizer in fp64 against torch's in fp64, both at the same formula in another order: 30 steps of some
# ten roundings each of numbers up to 10.
OPTIMIZER_FP64 = 30 * 10 * 10 * EPS[torch.float64] / 2
OPTIMIZER_FP32 = 30 * 10 * 10 * EPS[torch.float32] / 2

# 1 - beta^t in the optimizers' kernels: the exponent rounds once, the series and its sum at most three times more.
BIAS_CORRECTION = {dtype: 4 * eps for dtype, eps in EPS.items()}

# fp32 sums of squares of 1e5 entries in blocks against fp64, relative.
NORM_FP32 = 64 * EPS[torch.float32]

# The floor of a comparison with torch's own error, which may be small by luck: two eps, relative to the parameters.
OPTIMIZER_FLOOR = {dtype: 2 * eps for dtype, eps in EPS.items()}

# A handful of steps of two forms of an optimizer whose gradients come from the weights, so that differences grow: four
# times what as many steps of given gradients differ by, of parameters and of what moves them.
OPTIMIZER_RUN_FP32 = 4 * FP32
OPTIMIZER_RUN_MOVE_FP32 = 4 * OPTIMIZER_MOVE_FP32

# Moments after 8 steps in two orders of operations: squares of sums of gradients, eight roundings each.
OPTIMIZER_STATE_FP32 = 8 * FP32

# A mixture of Gaussians in 4 dimensions in fp64 against inverses and determinants of its covariances, whose condition
# number is below 1e4: that many times FP64, relative to log-densities of order 100.
FP64_MIXTURE = 1e-8

# What an estimate of known interactions may be off by, in nats: what is asked of it, 7 % of log 2.
KNOWN_INTERACTION = 0.05

# A temperature found from 4000 rows: neighbours that are tried differ by 2^(1/16), 4 %, and the likeliest scale of
# logits of variance 1 errs by about 1 / sqrt(4000 / 4), 3 %; four times the latter and the former.
TEMPERATURE = 0.04 + 4 * 0.03

# Losses of a training run by two implementations of its ops in fp32, relative: 60 steps (three epochs of 1258 rows)
# may each move what the next one starts from by an eps in the same direction.
LOSS_SERIES_FP32 = 60 * EPS[torch.float32]
