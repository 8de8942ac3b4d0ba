"""An external authorization service for Envoy, Istio and nginx."""

__version__ = "0.1.0"
