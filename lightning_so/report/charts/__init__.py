"""The pictures of a report, as Vega-Lite: functions from runs to charts, or to a line that says what records one."""
