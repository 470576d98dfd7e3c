"""Panels of the dashboards: queries, and the few forms in which they are shown.

The builders are Grafana's own: grafana_foundation_sdk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import (
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    MatcherConfig,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.config import CONFIG

HOST = 'job=~"$job",instance=~"$instance"'
"""Selector of the series of the chosen hosts."""

INTERFACE = f'{HOST},interface=~"$interface"'
"""Selector of the series of the chosen interfaces."""

BY_INTERFACE = "instance, interface"

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")

Query = tuple[str, str]
"""An expression, and the legend of its series."""

Steps = Sequence[tuple[float | None, str]]
"""Values from which on a color applies; the first one is None."""

BLUE: Steps = ((None, "blue"),)
ANY_IS_BAD: Steps = ((None, "green"), (1, "red"))


def filling(limit: float) -> Steps:
    """Return the colors of a fill, whose alert fires at `limit`."""
    return ((None, "green"), (round(limit - 0.2, 2), "yellow"), (limit, "red"))


def mapped(*values: tuple[int, str, str]) -> list[ValueMapping]:
    """Return the text and the color of each value."""
    results = {
        str(value): ValueMappingResult(text=text, color=color, index=nth)
        for nth, (value, text, color) in enumerate(values)
    }
    return [ValueMap(options=results)]


YES = mapped((1, "yes", "green"), (0, "no", "red"))
PAUSED = mapped((0, "no", "text"), (1, "yes", "orange"))
MODES = (("native", "green"), ("generic", "yellow"), ("tc", "blue"), ("userspace", "orange"))
MODE = mapped(*((nth, mode, color) for nth, (mode, color) in enumerate(MODES, 1)))


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Return the rate of an interface's counter, in all or by some labels."""
    inner = f"rate({metric}{{{INTERFACE}{more}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def mode_number() -> str:
    """Return a query of each interface's mode, as MODE maps it."""
    each = (
        f'ndxdp_mode{{{INTERFACE},mode="{mode}"}} * {nth}' for nth, (mode, _) in enumerate(MODES, 1)
    )
    return f"max by ({BY_INTERFACE}) ({' or '.join(each)}) > 0"


def fill(selector: str = INTERFACE) -> str:
    """Return a query of the fill of each map."""
    return f"ndxdp_map_entries{{{selector}}} / ndxdp_map_max_entries{{{selector}}}"


# ---- forms --------------------------------------------------------------------------------------

AnyPanel = dashboard.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
_Queried = TypeVar("_Queried", stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def _color(mode: FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _filled(
    panel: _Queried, title: str, description: str, unit: str, queries: Iterable[Query]
) -> _Queried:
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE)
    for nth, (expr, legend) in enumerate(queries):
        query = prometheus.Dataquery().datasource(DATASOURCE).ref_id(chr(ord("A") + nth))
        query.expr(expr).legend_format(legend or "__auto")
        if isinstance(panel, table.Panel):
            query.format(PromQueryFormat.TABLE).instant()
        else:
            query.range()
        panel.with_target(query)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = BLUE,
    mappings: list[ValueMapping] | None = None,
    if_none: str = "",
    width: int = 4,
) -> stat.Panel:
    """Return a panel with the last value of a query, and its course unless its values are mapped.

    Args:
        title: The title.
        description: The description.
        unit: The unit, of grafana_foundation_sdk.models.units.
        query: The query.
        steps: The colors, by value.
        mappings: The texts and colors of single values.
        if_none: The text in place of a value if there is none.
        width: The width, in columns of 24.
    """
    panel = _filled(stat.Panel(), title, description, unit, [query])
    panel.height(4).span(width).thresholds(_thresholds(steps)).min(0)
    panel.color_scheme(_color(FieldColorModeId.THRESHOLDS))
    panel.color_mode(common.BigValueColorMode.VALUE).text_mode(common.BigValueTextMode.VALUE)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    graph_mode = common.BigValueGraphMode.NONE if mappings else common.BigValueGraphMode.AREA
    panel.graph_mode(graph_mode).mappings(mappings or [])
    return panel.no_value(if_none) if if_none else panel


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    steps: Steps = (),
    bounds: Sequence[str] = (),
    width: int = 8,
) -> timeseries.Panel:
    """Return a panel with the course of some queries.

    Args:
        title: The title.
        description: The description.
        unit: The unit, of grafana_foundation_sdk.models.units.
        queries: The queries.
        stacked: The series are stacked.
        steps: Values that are marked by a dashed line; none if empty.
        bounds: Legends of series that are limits of the others: dashed, without an area.
        width: The width, in columns of 24.
    """
    panel = _filled(timeseries.Panel(), title, description, unit, queries)
    panel.height(8).span(width).min(0).thresholds(_thresholds(steps or BLUE))
    panel.color_scheme(_color(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel.line_width(1).fill_opacity(25 if stacked else 5).show_points(common.VisibilityMode.NEVER)
    stacking = common.StackingMode.NORMAL if stacked else common.StackingMode.NONE
    panel.stacking(common_builders.StackingConfig().mode(stacking).group("A"))
    if steps:
        dashed = common_builders.GraphThresholdsStyleConfig()
        panel.thresholds_style(dashed.mode(common.GraphThresholdsStyleMode.DASHED))
    for bound in bounds:
        style = {"fill": "dash", "dash": [10, 10]}
        panel.override_by_name(
            bound,
            [
                DynamicConfigValue("custom.lineStyle", style),
                DynamicConfigValue("custom.fillOpacity", 0),
                DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"}),
            ],
        )
    legend = common_builders.VizLegendOptions().show_legend(True)
    legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    return panel.legend(legend.calcs([])).tooltip(tooltip.sort(common.SortOrder.DESCENDING))


def states(
    title: str, description: str, query: Query, mappings: list[ValueMapping], width: int = 8
) -> statetimeline.Panel:
    """Return a panel with the states of some series in the course of time."""
    panel = _filled(statetimeline.Panel(), title, description, units.Short, [query])
    panel.height(8).span(width).mappings(mappings).thresholds(_thresholds(BLUE))
    panel.color_scheme(_color(FieldColorModeId.THRESHOLDS)).fill_opacity(70).line_width(0)
    panel.show_value(common.VisibilityMode.AUTO).row_height(0.8).merge_values(True)
    legend = common_builders.VizLegendOptions().show_legend(False)
    legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    return panel.legend(legend.calcs([]))


@dataclass(frozen=True)
class Column:
    """Column of a table: the value of a query, for each set of labels.

    Attributes:
        name: The heading.
        query: The query. The labels of its series are columns, too.
        unit: The unit.
        mappings: The texts and colors of single values.
        steps: The colors, by value, of a bar; a text if empty.
        is_hidden: Only the labels of the query are shown.
    """

    name: str
    query: str
    unit: str = units.Short
    mappings: list[ValueMapping] = field(default_factory=list)
    steps: Steps = ()
    is_hidden: bool = False

    def properties(self) -> list[DynamicConfigValue]:
        """Return what is particular to this column."""
        found = [DynamicConfigValue("unit", self.unit)]
        if self.mappings:
            found.append(DynamicConfigValue("mappings", self.mappings))
            found.append(DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
        if self.steps:
            found.append(DynamicConfigValue("thresholds", _thresholds(self.steps).build()))
            found.append(DynamicConfigValue("min", 0))
            found.append(DynamicConfigValue("max", 1))
            bar = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
            found.append(DynamicConfigValue("custom.cellOptions", bar))
        return found


def map_columns(by: str) -> tuple[Column, ...]:
    """Return the entries of each map, by some labels, what it has room for, and its fill."""
    return (
        Column("entries", f"max by ({by}) (ndxdp_map_entries{{{INTERFACE}}})"),
        Column("room", f"max by ({by}) (ndxdp_map_max_entries{{{INTERFACE}}})"),
        Column(
            "fill", f"max by ({by}) ({fill()})", units.PercentUnit, steps=filling(CONFIG.map_fill)
        ),
    )


def listing(
    title: str,
    description: str,
    labels: Sequence[str],
    columns: Sequence[Column],
    *,
    links: Mapping[str, tuple[str, str]] | None = None,
    sort_by: str = "",
    width: int = 12,
) -> table.Panel:
    """Return a table with a line for each set of labels.

    Args:
        title: The title.
        description: The description.
        labels: The labels that the queries have, in the order of their columns.
        columns: The further columns.
        links: The title and the address of the link of each value of a label.
        sort_by: The heading of the column by which to sort, the greatest value first.
        width: The width, in columns of 24.
    """
    queries = [(column.query, "") for column in columns]
    panel = _filled(table.Panel(), title, description, units.Short, queries)
    panel.height(8).span(width).show_header(True).thresholds(_thresholds(BLUE))
    panel.cell_options(common.TableAutoCellOptions())
    names = {f"Value #{chr(ord('A') + nth)}": each for nth, each in enumerate(columns)}
    hidden = ["Time", *(name for name, column in names.items() if column.is_hidden)]
    options = {
        "excludeByName": dict.fromkeys(hidden, True),
        "indexByName": {name: nth for nth, name in enumerate([*labels, *names])},
        "renameByName": {name: column.name for name, column in names.items()},
    }
    panel.with_transformation(DataTransformerConfig("merge", options={}))
    panel.with_transformation(DataTransformerConfig("organize", options=options))
    for column in columns:
        if not column.is_hidden:
            panel.override_by_name(column.name, column.properties())
    for label, (text, url) in (links or {}).items():
        link = {"title": text, "url": url}
        panel.with_override(MatcherConfig("byName", label), [DynamicConfigValue("links", [link])])
    if sort_by:
        panel.sort_by([common_builders.TableSortByFieldState().display_name(sort_by).desc(True)])
    return panel


def alert_list(description: str, more: str = "", width: int = 8) -> dashboard.Panel:
    """Return a list of alerts that fire or are about to.

    Grafana reads them from its data sources, which are Prometheus servers with rules, and from
    itself if the rules were imported there. The SDK has no builder for this kind of panel.

    Args:
        description: The description.
        more: Matchers of further labels.
        width: The width, in columns of 24.
    """
    states = ("firing", "pending", "noData", "error", "recovering")
    options = {
        "viewMode": "list",
        "groupMode": "default",
        "groupBy": [],
        "maxItems": 50,
        "sortOrder": 3,  # by importance
        "dashboardAlerts": False,
        "alertName": "Ndxdp",
        "alertInstanceLabelFilter": (
            f'{{job=~"${{job:regex}}",instance=~"${{instance:regex}}"{more}}}'
        ),
        "showInstances": True,
        "stateFilter": dict.fromkeys(states, True) | {"normal": False},
    }
    panel = dashboard.Panel().type("alertlist").title("Alerts").description(description)
    return panel.height(8).span(width).options(options)


# ---- dashboards ---------------------------------------------------------------------------------


def page(
    title: str, uid: str, description: str, other: tuple[str, str], *, several: bool
) -> dashboard.Dashboard:
    """Return a dashboard without panels.

    Args:
        title: The title.
        uid: The identifier, which links name.
        description: The description.
        other: The title and the identifier of the dashboard to link to.
        several: Several instances and interfaces may be chosen at once.
    """
    made = dashboard.Dashboard(title).uid(uid).description(description).tags(["ndxdp"]).readonly()
    made.refresh("30s").time("now-3h", "now").timezone(common.TimeZoneBrowser).version(1)
    made.tooltip(DashboardCursorSync.CROSSHAIR)
    # The other dashboard has the same choice of jobs, but not of instances and interfaces.
    way = f"/d/{other[1]}?${{datasource:queryparam}}&${{job:queryparam}}"
    link = dashboard.DashboardLink(other[0]).type(DashboardLinkType.LINK).icon("dashboard")
    made.link(link.url(way).keep_time(True))
    link = dashboard.DashboardLink("Runbook").type(DashboardLinkType.LINK).icon("doc")
    made.link(link.url(f"{CONFIG.docs}/runbook.md").target_blank(True))
    source = dashboard.DatasourceVariable("datasource").label("Data source")
    made.with_variable(source.type("prometheus"))
    narrower = ""
    for name in ("job", "instance", "interface"):
        metric = "ndxdp_attached" if name == "interface" else "ndxdp_build_info"
        query = f"label_values({metric}{{{narrower}}}, {name})"
        variable = dashboard.QueryVariable(name).label(name.capitalize()).datasource(DATASOURCE)
        variable.query({"query": query, "refId": name}).sort(VariableSort.NATURAL_ASC)
        variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        if several or name == "job":
            everything = VariableOption(text=["All"], value=["$__all"])
            variable.multi(True).include_all(True).all_value(".+").current(everything)
        made.with_variable(variable)
        narrower += ("," if narrower else "") + f'{name}=~"${name}"'
    return made


def add_row(made: dashboard.Dashboard, title: str, *panels: AnyPanel) -> None:
    """Append a row of panels, which Grafana breaks into lines by their widths."""
    made.with_row(dashboard.Row(title))
    for panel in panels:
        made.with_panel(panel)


def model(made: dashboard.Dashboard) -> Dashboard:
    """Return a finished dashboard; its panels have numbers."""
    finished = made.build()
    for number, panel in enumerate(finished.panels or (), 1):
        panel.id_val = number
    return finished
