package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// notFoundText is how plugins report that the plugin which they hand a part of their work to, like address management, is
// not there. They give it no code of its own.
const notFoundText = "failed to find plugin"

// missingError says that a plugin is not there.
type missingError struct {
	text string
}

// Error implements error.
func (e missingError) Error() string { return e.text }

// Unwrap gives the kind of the error.
func (missingError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// removeUnfinished runs DEL plugin by plugin for an ADD that did not succeed. One that cannot be run is what has stopped
// that ADD: it has made nothing, and must not keep the pod from being removed for as long as it is not there.
func (c *cni) removeUnfinished(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := c.deadline(ctx, "DEL")
	defer cancel()
	var errs []error
	for _, plugin := range slices.Backward(list.Plugins) {
		one := *list
		one.Plugins = []*libcni.PluginConfig{plugin}
		err := c.lib.DelNetworkList(ctx, &one, rt)
		if err != nil && !neverRan(err) {
			errs = append(errs, fmt.Errorf("network %s: %w", list.Name, classify(err)))
		}
	}
	return errors.Join(errs...)
}

// neverRan tells that a plugin is not there, or does not know the version of the list.
func neverRan(err error) bool {
	if missing := (missingError{}); errors.As(err, &missing) {
		return true
	}
	var said *types.Error
	return errors.As(err, &said) &&
		(said.Code == types.ErrIncompatibleCNIVersion || strings.Contains(said.Msg, notFoundText))
}
