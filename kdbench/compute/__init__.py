"""How to compute on this device: the route that settings and length choose, and the fast ways along it."""
