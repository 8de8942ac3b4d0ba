"""An external authorization service for Envoy and Istio."""

__version__ = "0.1.0"
