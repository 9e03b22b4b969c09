package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgfs/imgfs/mount"
)

// umountOptions is what `imgfs umount` is asked for.
type umountOptions struct {
	lazy bool
}

func newUmountCommand() *cobra.Command {
	o := &umountOptions{}
	cmd := &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "End a mount",
		Long: `Unmount, and return when the process that served the mount is gone.

` + exitHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("one mountpoint is wanted, not %d", len(args))
			}
			return nil
		},
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
		ValidArgsFunction: completeMount,
	}
	cmd.Flags().BoolVarP(&o.lazy, "lazy", "l", false, "detach it even if files are open; the process ends when they are closed")
	return cmd
}

func (o *umountOptions) run(cmd *cobra.Command, mountpoint string) error {
	err := mount.Unmount(cmd.Context(), mountpoint, o.lazy)
	if o.lazy && errors.Is(err, mount.ErrServing) {
		fmt.Fprintf(cmd.ErrOrStderr(), "imgfs: %s: %v\n", mountpoint, err)
		return nil // that is what was asked for
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", mountpoint, err)
	}
	return nil
}
