"""Does a bundle that was just judged take the champion's place? Decided, written down, and done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from lungml.candidacy import Candidacy, Member, Origin, find_flaws, kind
from lungml.compare import Sampled, Statistic
from lungml.files import write_text_atomic
from lungml.gate import Decision, GateSettings, decide
from lungml.home import Home
from lungml.phantom import is_phantom_uid
from tasks import promotion, registry, tracking
from tasks.finding import slug_of
from tasks.members import load_member
from tasks.pipeline import Pipeline
from tasks.provenance import learned_origin, used_by
from tasks.tracking import TrackingError

# Of a model's configuration, how it sees a scan; the HU range is one for all as long as no configuration names it.
INPUTS = ("context_slices", "crop_shape", "spacing_mm", "hu_range")


def to_beat(home: Home, origin: Origin) -> str | None:
    """`models:/luna/N` that a challenger of this origin has to beat, to be scored on the same scans; None for none."""
    return promotion.alias_of(home, promotion.DEMO if origin == "phantom" else promotion.CHAMPION)


@task(name="gate", task_run_name="gate {challenger_uri}", cache_policy=NO_CACHE)
def gate(
    challenger_uri: str,
    champion_uri: str | None,
    challenger: Mapping[Statistic, Sampled],
    champion: Mapping[Statistic, Sampled] | None,
    *,
    series_uids: Sequence[str],
    malignant: int,
    set_aside: int,
    pipeline: Pipeline,
    settings: GateSettings | None = None,
) -> Decision:
    """Decide by `lungml.gate.decide`, move the aliases if the challenger is promoted, and write down why.

    Whether the bundles are whole and of one kind, and whether their models have seen the test scans, is looked up
    here. Who is to be beaten is looked up too: a champion that was not scored, or comes before the aliases are moved,
    is not replaced.

    What is left: `gate.json` under the home's `reports/gate/luna-N/` and in an MLflow run of `luna-end-to-end`, whose
    tags and metrics tell the rest; tags on the bundle's version; two Prefect artifacts, `luna-gate` and
    `luna-gate-checks`. It is written when the aliases have moved: a promotion that failed is none. What stands already
    keeps what was once said of it.

    Args:
        challenger_uri: of a registered bundle.
        champion_uri: the one to beat, see `to_beat`; None for none.
        challenger, champion: their scores on the same resamples of the same scans.
        series_uids: the test scans in the order that they were resampled in, those set aside included.
        malignant: malignant nodules on them.
        set_aside: how many of them could not be read.
        pipeline: of this run; its origin is that of the scans.
        settings: see `GateSettings`.

    Raises:
        TrackingError: there is no such bundle, or the aliases could not be moved, which is written down as a refusal.
    """
    home, rules = pipeline.home, settings or GateSettings()
    uri = promotion.resolve(home, challenger_uri)
    scans: dict[str, Any] = {
        "series_uids": tuple(series_uids),
        "scans": "phantom" if pipeline.origin == "phantom" or any(map(is_phantom_uid, series_uids)) else "real",
        "malignant": malignant,
        "set_aside": set_aside,
    }
    one = _candidacy(home, uri, challenger, scans, pipeline.origin)
    other = None
    standing = to_beat(home, one.origin)
    if standing:
        scored = champion if champion_uri and promotion.resolve(home, champion_uri) == standing else None
        other = _candidacy(home, standing, scored or {}, scans, one.origin)
    decision = decide(one, other, rules)
    if decision.promoted:
        try:
            because = "; ".join(decision.reasons)
            promotion.promote(home, uri, decision.alias, because, by="gate", instead_of=decision.champion)
        except TrackingError as error:
            _record(decision.unmoved(str(error)), scans["scans"], rules, pipeline)
            raise
    get_run_logger().info(decision.words)
    _record(decision, scans["scans"], rules, pipeline)
    return decision


def _candidacy(
    home: Home,
    uri: str,
    samples: Mapping[Statistic, Sampled],
    scans: Mapping[str, Any],
    otherwise: Origin,
) -> Candidacy:
    """What the registry and the models' runs say of a bundle; one that cannot be read is taken to be of `otherwise`."""
    try:
        fields = registry.read_bundle(home, uri)
    except TrackingError as error:
        return Candidacy(uri=uri, origin=otherwise, samples=samples, flaws=(str(error),), **scans)
    members, flaws = _members(home, fields)
    if not flaws:
        try:
            registry.check_whole(home, uri)
        except TrackingError as error:
            flaws.append(str(error))
    return Candidacy(
        uri=uri,
        origin=fields["origin"],
        samples=samples,
        flaws=(*flaws, *find_flaws(fields["origin"], members)),
        leaks=tuple(_leaks(home, fields, scans["series_uids"])),
        **scans,
    )


def _members(home: Home, fields: Mapping[str, Any]) -> tuple[list[Member], list[str]]:
    """A bundle's models, and what is wrong with those that cannot be had."""
    members, flaws = [], []
    for member, stage in registry.BUNDLE_MEMBERS.items():
        for uri in registry.member_uris(fields, member):
            try:
                config = asdict(load_member(home, uri, stage).config)
            except TrackingError as error:
                flaws.append(f"its {member} model is not to be had: {error}")
                continue
            inputs = {name: config[name] for name in INPUTS if name in config}
            members.append(Member(member=member, uri=uri, origin=learned_origin(home, uri), inputs=inputs))
    return members, flaws


def _leaks(home: Home, fields: Mapping[str, Any], series_uids: Sequence[str]) -> list[str]:
    """Which of a bundle's models learned from these scans or their patients, were chosen on them, or do not say."""
    leaks = []
    for used in used_by(home, fields):
        seen = [uid for uid in series_uids if used.deed(uid)]
        if used.silent:
            leaks.append(
                f"its {used.member} model {used.uri}, or what it started from, does not say which scans taught it"
            )
        if seen:
            leaks.append(
                f"its {used.member} model {used.uri} learned from, or was chosen on, {len(seen)} of the "
                f"{len(series_uids)} test scans or their patients (such as {seen[0]})"
            )
    return leaks


def _record(decision: Decision, scans: Origin, settings: GateSettings, pipeline: Pipeline) -> None:
    """Write the decision wherever somebody may look for it."""
    home, name = pipeline.home, slug_of(decision.challenger)
    verdict, reasons = "promoted" if decision.promoted else "refused", "; ".join(decision.reasons)
    said = {**decision.as_dict(), "settings": asdict(settings), "scans": kind(scans), "not for": "clinical use"}
    text = json.dumps(said, indent=1, allow_nan=False)
    tags = {
        promotion.GATE: verdict,
        promotion.REASONS: reasons,
        "luna.gate.alias": decision.alias,
        "luna.gate.champion": decision.champion or "",
        "luna.gate.numbers": json.dumps({c["name"]: c["numbers"] for c in said["checks"] if c["numbers"]}),
    }
    stands = not decision.promoted and decision.challenger == promotion.alias_of(home, decision.alias)
    if not stands:
        write_text_atomic(home.reports / "gate" / name / "gate.json", text + "\n")
        promotion.tag_version(home, decision.challenger, tags)
    with tracking.open_run(
        home,
        "end-to-end",
        name=f"gate {name}",
        pipeline_id=pipeline.pipeline_id,
        params={
            "bundle": decision.challenger,
            "champion": decision.champion or "none",
            "origin": scans,
            **asdict(settings),
        },
        tags={"luna.origin": scans, **tags},
        sample_every_s=None,
    ) as run:
        run.log_metrics(
            {f"gate/{check.name}/{name}": value for check in decision.checks for name, value in check.numbers.items()}
        )
        run.log_text(text, "gate.json")
        data = kind(scans)
        page = markdown(decision, data)
        run.log_tag(tracking.RUN_NOTE, page.replace(f"@{decision.alias}", f"`{decision.alias}`"))  # no @: it would link
    create_markdown_artifact(page, key="luna-gate", description="Did the challenger become the one to use, and why?")
    create_table_artifact(
        [{"check": check.name, "passed": check.passed, "what": check.words} for check in decision.checks],
        key="luna-gate-checks",
        description=f"What the gate asked of {decision.challenger}: {data}, not for clinical use",
    )


def markdown(decision: Decision, data: str) -> str:
    """The decision as a page; `data` says what the scans are."""
    against = f"against `{decision.champion}`" if decision.champion else f"there was no @{decision.alias} before"
    lines = [f"# `{decision.challenger}` {decision.verdict}", ""]
    lines += [f"{data.capitalize()}, {against}. Not for clinical use.", ""]
    lines += [f"- {reason}" for reason in decision.reasons]
    lines += ["", "| check | | what |", "| --- | --- | --- |"]
    lines += [f"| {c.name} | {'passed' if c.passed else '**failed**'} | {c.words} |" for c in decision.checks]
    return "\n".join(lines)
