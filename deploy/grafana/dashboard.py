"""The dashboard as code: `python -m deploy.grafana.dashboard` writes dashboards/medusa.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_options
from grafana_foundation_sdk.models import prometheus as queries

from deploy.grafana.panel import Panel
from deploy.grafana.service import CACHE, LATENCY, MACHINE, OUTCOMES, TRAFFIC
from deploy.grafana.speculation import GLANCE, SPECULATION

__all__ = ["FILE", "dashboard_json"]

FILE = Path(__file__).parent / "dashboards" / "medusa.json"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
# From what the product is about to the machine it runs on.
ROWS = (GLANCE, SPECULATION, LATENCY, TRAFFIC, OUTCOMES, CACHE, MACHINE)


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value, color) for value, color in panel.thresholds]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _figure(panel: Panel) -> stat.Panel:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().reduce_options(newest).color_mode(options.BigValueColorMode.VALUE)


def _lines(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .line_width(2 if not panel.is_stacked else 1)
        .fill_opacity(40 if panel.is_stacked else 8)
        .show_points(options.VisibilityMode.AUTO)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
    )
    if panel.is_stacked:
        built.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if panel.thresholds:
        built.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphTresholdsStyleMode.DASHED))
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_options.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .fill("dark-orange")
            .scale(heatmap_options.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(options.HeatmapCellLayout.AUTO))
        .show_legend()
        .show_tooltip()
    )


def _states(panel: Panel) -> statetimeline.Panel:
    words: dict[str, Any] = {
        "0": model.ValueMappingResult(text="down", color="red", index=0),
        "1": model.ValueMappingResult(text="up", color="green", index=1),
    }
    return statetimeline.Panel().mappings([model.ValueMap(words)]).merge_values(True)


def _table(panel: Panel) -> table.Panel:
    hidden = {name: True for name in ("Time", "Value", "__name__", "job")}
    return (
        table.Panel()
        .show_header(True)
        .with_transformation(model.DataTransformerConfig("organize", options={"excludeByName": hidden}))
    )


BUILDERS: dict[str, Callable[[Panel], Any]] = {
    "figure": _figure,
    "lines": _lines,
    "heatmap": _heatmap,
    "states": _states,
    "table": _table,
}
FORMATS = {"heatmap": queries.PromQueryFormat.HEATMAP, "table": queries.PromQueryFormat.TABLE}


def _build(panel: Panel, number: int) -> Any:
    """A panel with what all kinds have in common."""
    built = (
        BUILDERS[panel.kind](panel)
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
    )
    if panel.kind == "lines" and panel.minimum is not None:
        built.min(panel.minimum)
    if panel.maximum is not None:
        built.max(panel.maximum)
    if panel.decimals is not None:
        built.decimals(panel.decimals)
    if panel.thresholds:
        built.thresholds(_thresholds(panel))
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter)
        target.format(FORMATS.get(panel.kind, queries.PromQueryFormat.TIME_SERIES))
        # one value is all that a figure and a table show
        built.with_target(target.instant() if panel.kind in ("figure", "table") else target.range())
    return built


def _variable(name: str, label: str, values: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": values, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def dashboard_json() -> str:
    """The dashboard as Grafana reads it."""
    built = (
        dashboard.Dashboard("Medusa Server")
        .uid("medusa")
        .description("What speculation brings, how fast answers come, and whether all is well.")
        .tags(["medusa"])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("model_name", "Model", "label_values(medusa_queue_capacity, model_name)"))
        .with_variable(
            _variable("instance", "Server", 'label_values(medusa_queue_capacity{model_name=~"$model_name"}, instance)')
        )
    )
    number = 0
    for row in ROWS:
        number += 1
        built.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            built.with_panel(_build(panel, number))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(dashboard_json(), encoding="utf-8")
