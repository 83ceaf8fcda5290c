package harness

// NRISocket is where plugins of the Node Resource Interface connect to the node.
func (n *Node) NRISocket() string { return n.Config.NRISocket() }
