"""Do PgM's shares on real sets agree with LSMI's estimates of what modalities share, hold alone and hold only together?

    python benchmarks/shares_real.py [--seeds 0] [--estimates 0] [--sets digits wiki]

PgM is trained on a set and LSMI measures its features: two ways to the same quantities that have nothing in common but
the rows. Shares and estimates are means over the test split. LSMI gives r, u and s of two modalities in nats. For a
modality m of more, unique is the least u of its pairs, redundant the largest r, synergistic the largest s; all are
divided by the most that any pair of the set tells of the label, so that sets of 2 and of 100 classes stand on one
scale, as they do for the shares. Writes ``results/methods/shares_real.json``, where sets that are not measured again
stay, and, from it alone, ``shares_real.md``. Data files are looked for in ``PGM_FAST_DATA``, else in ``data/``; a set
whose file is missing is skipped.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.interactions import Settings, estimate
from pgm_fast.interactions.estimates import Interaction, decompose, shift_of, shifted
from pgm_fast.train import fit, predict
from pgm_fast.train.features import load_features, resolve_config
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "shares_real.json", RESULTS / "shares_real.md"
# What LSMI calls it -> PgM's mass.
MASSES = {"unique": "uni_only", "redundant": "shared", "synergistic": "paired_only"}
RULES = {"entropy": "published rule", "information": "r = min(i₁, i₂)"}
LEAKY = "MOSI"
RUN = {"train.epochs": 25, "train.patience": 8, "train.plots": False, "train.logger": [], "train.device": "cpu"}
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {}),
    "mfeat fou+mor": ("mfeat.npz", {"data.modalities": ["fou", "mor"]}),
    "mfeat zer+mor": ("mfeat.npz", {"data.modalities": ["zer", "mor"]}),
    "mfeat pix+zer": ("mfeat.npz", {"data.modalities": ["pix", "zer"]}),
    "mfeat fac+mor": ("mfeat.npz", {"data.modalities": ["fac", "mor"]}),
    "landuse21": ("landuse21.npz", {}),
    "avdigits": ("avdigits.npz", {}),
    "wiki": ("wiki.npz", {}),
    "leaves100": ("leaves100.npz", {}),
    "MOSI": ("mosi.npz", {"data.ignore": ["video", "utterance"], "train.epochs": 10}),
}
# Taken when the reading at greatest overlap was known, to see whether it holds elsewhere.
LATER: dict[str, tuple[str, dict[str, Any]]] = {
    f"{stem} {'+'.join(pair)}": (f"{stem}.npz", {"data.modalities": list(pair)})
    for stem, pair in (
        ("mfeat", ("kar", "mor")),
        ("mfeat", ("fou", "zer")),
        ("mfeat", ("fac", "pix")),
        ("mfeat", ("kar", "zer")),
        ("wiki", ("image", "text")),
        ("wiki", ("sift", "topics")),
        ("landuse21", ("view20", "view59")),
        ("landuse21", ("view40", "view59")),
        ("leaves100", ("margin", "shape")),
    )
}
ALL = SETS | LATER


def shares(settings: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Train once: ``{"accuracy": number, "masses": {modality: {quantity: mean share of the test rows}}}``."""
    report = fit(method="pgm", out=str(folder), **{**settings, "train.seed": seed})
    found = predict(folder, split="test").shares
    order = ("uni_only", "paired_only", "shared", "unused")
    masses = {
        m: {name: float(values[:, order.index(mass)].mean()) for name, mass in MASSES.items()}
        for m, values in found.items()
    }
    return {"accuracy": report["test"]["fused"]["accuracy"], "masses": masses}


def measured(settings: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """LSMI's estimate once: rule -> modality -> quantity, as parts of what the best pair tells."""
    features = load_features(resolve_config(dict(settings), None, {}))
    found = estimate(features, split="test", settings=Settings(seed=seed), device="cpu")
    information, density = found.information, found.entropy
    modalities = list(features.modalities)
    masses = {}
    for rule in RULES:
        pairs = {}
        for a, b in combinations(modalities, 2):
            densities = (density[a], density[b]) if rule == "entropy" else ()
            rows = decompose(information[a], information[b], information[f"{a}+{b}"], *densities)
            means = Interaction(*(float(np.nanmean(values)) for values in rows))
            pairs[a, b] = Interaction(*(float(value) for value in shifted(means, shift_of(means))))
        masses[rule] = per_modality(pairs)
    return masses


def per_modality(pairs: Mapping[tuple[str, str], Interaction]) -> dict[str, dict[str, float]]:
    """What the pairs say of each modality: the least of what is unique, the most of what is not, over the largest sum.

    A modality's unique part beside one other may be shared with a third, hence the least.
    """
    known = max(sum(pair) for pair in pairs.values())
    found: dict[str, dict[str, float]] = {}
    for m in dict.fromkeys(m for pair in pairs for m in pair):
        own = [(pair[1 + names.index(m)], pair) for names, pair in pairs.items() if m in names]
        found[m] = {
            "unique": min(unique for unique, _ in own) / known,
            "redundant": max(pair.redundancy for _, pair in own) / known,
            "synergistic": max(pair.synergy for _, pair in own) / known,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of PgM")
    parser.add_argument("--estimates", type=int, nargs="+", default=[0], help="seeds of LSMI")
    parser.add_argument("--sets", nargs="+", choices=list(ALL), default=list(ALL))
    options = parser.parse_args(arguments)
    for name in options.sets:
        file, own = ALL[name]
        source = file
        if file.endswith(".npz"):
            data = Path(os.environ.get("PGM_FAST_DATA", "data"))
            if not (data / file).exists():
                print(f"{name}: skipped, {file} is not in {data}; set PGM_FAST_DATA to its folder")
                continue
            source = str(data / file)
        settings = {**RUN, **own, "data.source": source}
        with tempfile.TemporaryDirectory() as folder:
            runs = {str(seed): shares(settings, seed, Path(folder) / str(seed)) for seed in options.seeds}
        estimates = {str(seed): measured(settings, seed) for seed in options.estimates}
        known = read_json(JSON)["sets"] if JSON.exists() else {}
        known[name] = {"pgm": runs, "lsmi": estimates, "settings": own}
        facts = {
            "date": date.today().isoformat(),
            "processor": processor_name(),
            "versions": versions(),
            "commit": git_commit(RESULTS.parent),
            "run": RUN,
        }
        write_json(JSON, {**facts, "sets": {key: known[key] for key in ALL if key in known}})
        with atomic_write(TABLE, "w") as out:
            out.write(table())
        print(name, "done", flush=True)


Masses = dict[tuple[str, str], dict[str, float]]  # (set, modality) -> quantity -> part


def shares_found(sets: Mapping[str, Any]) -> Masses:
    """PgM's masses, means over seeds."""
    return {
        (name, m): {q: statistics.mean(run["masses"][m][q] for run in of["pgm"].values()) for q in MASSES}
        for name, of in sets.items()
        for m in next(iter(of["pgm"].values()))["masses"]
    }


def estimates_found(sets: Mapping[str, Any], rule: str) -> Masses:
    """LSMI's parts by one rule, means over seeds."""
    return {
        (name, m): {q: statistics.mean(run[rule][m][q] for run in of["lsmi"].values()) for q in MASSES}
        for name, of in sets.items()
        for m in next(iter(of["lsmi"].values()))[rule]
    }


def overlapping(masses: Masses) -> Masses:
    """PgM's two sides read as if they overlapped as far as they can.

    The gates have two numbers, how much the uni-modal side takes and how much the paired side does. They open from
    opposite ends, so that they share only what the two sum to beyond 1. Read so, a part of a representation that is
    redundant while the rest is unused is half unique and half synergistic.
    """
    found = {}
    for place, of in masses.items():
        uni, paired = of["unique"] + of["redundant"], of["synergistic"] + of["redundant"]
        shared = min(uni, paired)
        found[place] = {"unique": uni - shared, "redundant": shared, "synergistic": paired - shared}
    return found


READINGS = {
    **{q: (q,) for q in MASSES},
    "alone: unique and redundant": ("unique", "redundant"),
    "with others: redundant and synergistic": ("redundant", "synergistic"),
}


def agreement(one: Masses, other: Masses, quantities: Sequence[str]) -> float:
    """Spearman's rank correlation, over modalities and sets, of the sum of these quantities."""
    places = [place for place in one if place in other]
    sums = [[sum(of[place][q] for q in quantities) for place in places] for of in (one, other)]
    return float(spearmanr(*sums).statistic) if all(len(set(values)) > 1 for values in sums) else math.nan


def agreement_of_all(one: Masses, other: Masses) -> float:
    """The same of the three quantities, each a place of its own."""
    places = [(place, q) for place in one if place in other for q in MASSES]
    return float(spearmanr(*[[of[place][q] for place, q in places] for of in (one, other)]).statistic)


def table() -> str:
    """The content of ``shares_real.md``."""
    content = read_json(JSON)
    sets = content["sets"]
    ours = shares_found(sets)
    theirs = {rule: estimates_found(sets, rule) for rule in RULES}
    lines = [
        "# PgM's shares beside LSMI's estimates on real sets",
        "",
        "Means over the test split. PgM: parts of a modality's representation. LSMI: parts of what the best pair of",
        "modalities tells of the label, by the published rule; of more than two modalities the least u and the largest",
        f"r and s of a modality's pairs. Made by `python benchmarks/shares_real.py`; {content['processor']}, torch",
        f"{content['versions']['torch']}.",
        "",
        "| set | modality | unique: PgM, LSMI | redundant: PgM, LSMI | synergistic: PgM, LSMI |",
        "|---|---|---|---|---|",
    ]
    for name, m in ours:
        cells = [f"{ours[name, m][q]:.2f}, {theirs['entropy'][name, m][q]:.2f}" for q in MASSES]
        lines.append(f"| {name} | {m} | {' | '.join(cells)} |")
    first, later = ({place: of for place, of in ours.items() if place[0] in those} for those in (SETS, LATER))
    lines += [
        "",
        f"Rank correlation (Spearman) over the {_counted(first)}, and without {LEAKY}, whose",
        "validation rows are recognised almost without error, so that both sides' temperatures are wrong on its test",
        "rows. *Greatest overlap*: unique, redundant and synergistic when PgM's two sides share as much as they can.",
        "",
        *_correlations(first, theirs, but={LEAKY}),
    ]
    if later:
        lines += [
            "",
            f"Over the {_counted(later)} that were taken when that reading was known:",
            "",
            *_correlations(later, theirs),
        ]
    return "\n".join(lines) + "\n"


def _counted(masses: Masses) -> str:
    return f"{len(masses)} modalities of {len({name for name, _ in masses})} sets"


def _correlations(ours: Masses, theirs: Mapping[str, Masses], but: Collection[str] = ()) -> list[str]:
    """A table: over all sets and, where there are some to leave out, without those."""
    lines = [f"| | {' | '.join(READINGS)} | all three |", "|---|" + "---|" * (len(READINGS) + 1)]
    pairs = {f"PgM and LSMI, {called}": (ours, theirs[rule]) for rule, called in RULES.items()}
    pairs |= {
        f"PgM at greatest overlap and LSMI, {called}": (overlapping(ours), theirs[rule])
        for rule, called in RULES.items()
    }
    one, other = theirs.values()
    pairs["LSMI, one rule and the other"] = ({place: one[place] for place in ours}, other)
    for called, (one, other) in pairs.items():
        rest = {place: of for place, of in one.items() if place[0] not in but}
        cells = []
        for correlation in (*(partial(agreement, quantities=q) for q in READINGS.values()), agreement_of_all):
            values = [correlation(places, other) for places in ((one, rest) if but else (one,))]
            cells.append(", ".join(f"{value:.2f}" for value in values))
        lines.append(f"| {called} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
