"""The doors: what speaks gRPC and HTTP. Each maps its own words to a Request, and a Decision to its own words."""
