// Check of a dashboard against Grafana's schema: `make check-dashboards` appends the dashboard to this file.
import type * as raw from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as graph from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as states from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';

// JSON has the values of an enum's members in place of the members.
type Json<T> = T extends string ? `${T}`
  : T extends number ? number
  : T extends object ? { [K in keyof T]: Json<T[K]> }
  : T;

// Each kind of panel defines its own options and fields, which the schema does not.
type Fields<Custom> = Omit<raw.FieldConfigSource, 'defaults'> & {
  defaults: Omit<raw.FieldConfig, 'custom'> & { custom?: Custom };
};
type Panel<Type, Options, Custom> = Omit<raw.Panel, 'type' | 'options' | 'fieldConfig'> & {
  type: Type;
  options: Options;
  fieldConfig: Fields<Custom>;
};
// @grafana/schema does not have this panel; public/app/plugins/panel/alertlist/types.ts of Grafana has.
type AlertList = Omit<raw.Panel, 'type' | 'options' | 'targets'> & {
  type: 'alertlist';
  options: {
    viewMode: 'list' | 'stat';
    groupMode: 'default' | 'custom';
    groupBy: string[];
    maxItems: number;
    sortOrder: 1 | 2 | 3 | 4 | 5;
    dashboardAlerts: boolean;
    alertName: string;
    alertInstanceLabelFilter: string;
    showInstances: boolean;
    stateFilter: Record<'firing' | 'pending' | 'noData' | 'normal' | 'error' | 'recovering', boolean>;
  };
};
type Dashboard = Omit<raw.Dashboard, 'panels'> & {
  panels: (
    | Panel<'timeseries', graph.Options, graph.FieldConfig>
    | Panel<'stat', stat.Options, never>
    | Panel<'state-timeline', states.Options, states.FieldConfig>
    | Panel<'table', table.Options, table.FieldConfig>
    | AlertList
    | raw.RowPanel
  )[];
};

export const dashboard: Json<Dashboard> =
