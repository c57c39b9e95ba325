"""Preflight's reports as a person reads them: a page for one, a table for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.preflight.report import Estimate, Report, Workload
from research.reports.tables import Column, text_table


def describe(report: Report) -> str:
    """One report, some lines long."""
    workload, estimate = report.workload, report.estimate
    assert workload is not None
    slices = f"{report.slices} x " if report.slices > 1 else ""
    chips = f"{workload.chips} chip{'s' if workload.chips > 1 else ''}"
    trained_share = workload.trainable_parameters / workload.parameters
    verdict = _verdict(report.to_json())
    lines = [
        f"{'fits' if report.fits else 'NO':10} {slices}{report.topology}, {chips}: {verdict}",
        f"{'run':10} {workload.method}, {workload.parameters / 1e9:.2f} billion parameters, "
        f"{trained_share:.2%} train; {workload.batch_size} rows of {workload.sequence_length}, "
        f"accumulation_steps {workload.accumulation_steps}, remat {workload.remat}",
    ]
    if estimate is None:
        return "\n".join([*lines, f"{'FLOPs':10} {workload.model_flops:.3g} a step"])
    lines.insert(1, f"{'memory':10} {_describe_memory(report, estimate)} GiB")
    return "\n".join([*lines, *_describe_estimate(workload, estimate)])


def _describe_memory(report: Report, estimate: Estimate) -> str:
    resident = {
        "weights": estimate.weights_gib,
        "adapters": estimate.adapters_gib,
        "optimizer": estimate.optimizer_gib,
    }
    parts = ", ".join(f"{name} {gib:.2f}" for name, gib in resident.items() if gib >= 0.005)
    text = f"between steps: {parts}"
    if estimate.host_gib >= 0.005:
        text += f"; with the host {estimate.host_gib:.2f}"
    if report.memory.argument_gib is not None:
        text += f"; arguments {report.memory.argument_gib:.2f}"
    if report.memory.temp_gib is not None:
        text += f", temporaries {report.memory.temp_gib:.2f}"
    return text


def _describe_estimate(workload: Workload, estimate: Estimate) -> list[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in estimate.mesh.items() if size > 1)
    bounds = ", ".join(f"{name} {time:.3g} s" for name, time in estimate.seconds.items() if time)
    traffic = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e9:.2f}"
        for name, size in estimate.sent_bytes.items()
        if size > 1e7
    )
    cost = f"at best {estimate.hours:,.1f} hours, {estimate.chip_hours:,.0f} chip-hours"
    lines = [
        f"{'mesh':10} {mesh or 'one device'}; {estimate.rows_per_device} rows a device at a time",
        f"{'FLOPs':10} {workload.model_flops:.3g} a step, with what is computed twice "
        f"{estimate.hardware_flops:.3g}",
        f"{'bytes':10} {estimate.memory_bytes / 1e9:.1f} GB through memory; sent: "
        f"{traffic or 'nothing'} GB",
        f"{'at best':10} {estimate.step_seconds:.3g} s a step, bound by {estimate.bound_by} "
        f"({bounds})",
        f"{'':10} {estimate.tokens_per_second:,.0f} tokens/s, {estimate.utilisation:.1%} of peak",
        f"{'cost':10} {workload.steps:,} steps: {cost}",
    ]
    if estimate.money is not None:
        lines[-1] += f", {estimate.money:,.0f} {estimate.currency}"
        conditions = f", {estimate.prices_are}" if estimate.prices_are else ""
        lines.append(f"{'':10} prices of {estimate.prices_of}{conditions}")
    return lines


def _verdict(row: Mapping[str, Any]) -> str:
    """The room that a report's step leaves or lacks; else why it does not fit."""
    peak = row["peak_gib"]
    if peak is None:
        return row["why"]
    limit = row["limit_gib"]
    unit = "a chip" if row["devices_per_chip"] == 1 else "a device (half a chip)"
    rest = f"{limit - peak:.2f} left" if peak <= limit else f"{peak - limit:.2f} too many"
    return f"{peak:.2f} GiB {unit} of {limit:.2f}, {rest}"


# whether a run fits, what of memory it takes, and how fast it is at best
FIT_COLUMNS = (
    Column("fits", "fits"),
    Column("peak_gib", "peak", "GiB", format=".2f"),
    Column("limit_gib", "of", "GiB", format=".2f"),
    Column("argument_gib", "arguments", "GiB", format=".2f"),
    Column("temp_gib", "temporaries", "GiB", format=".2f"),
    Column("tokens_per_second", "at best", "tokens/s", format=",.0f"),
    Column("utilisation", "of peak", "%", 100, ".1f"),
    Column("bound_by", "bound by"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each report's JSON; those that do not fit say why."""
    currency = next((row["currency"] for row in rows if row.get("currency")), "")
    columns = [
        Column("topology", "topology"),
        Column("chips", "chips"),
        Column("method", "method"),
        *FIT_COLUMNS,
        Column("hours", "run", "hours", format=",.1f"),
        Column("money", "cost", currency, format=",.0f"),
    ]
    if not all(row["fits"] for row in rows):
        columns.append(Column("why", "why not"))
    cells = [
        dict.fromkeys((column.key for column in columns), None)
        | dict(row)
        | {"fits": "yes" if row["fits"] else "no"}
        | {"why": "" if row["fits"] else _verdict(row)}
        for row in rows
    ]
    return text_table(cells, columns)
