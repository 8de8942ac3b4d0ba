"""The demo: a real Envoy, a small identity provider, an echo upstream and the service, on loopback, all thrown away."""
