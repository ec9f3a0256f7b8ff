"""Keys, connections and configuration: what every protocol of a node stands on."""
