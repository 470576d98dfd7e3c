// Check of ndxdp.json against Grafana's schema: `make check-dashboards` appends the dashboard to this file.
import type * as raw from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as graph from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';

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
type Dashboard = Omit<raw.Dashboard, 'panels'> & {
  panels: (
    | Panel<'timeseries', graph.Options, graph.FieldConfig>
    | Panel<'stat', stat.Options, never>
    | raw.RowPanel
  )[];
};

export const dashboard: Json<Dashboard> =
