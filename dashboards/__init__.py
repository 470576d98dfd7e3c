"""Dashboards, alerts and recording rules of ndxdp, as code."""
