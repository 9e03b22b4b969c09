package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgfs/imgfs/mount"
)

// newMountHelperCommand is the program as mount(8) calls it for the type imgfs: mount.imgfs SOURCE MOUNTPOINT
// [-sfnv] [-N namespace] [-o options] [-t type].
func newMountHelperCommand(a *app) *cobra.Command {
	o := &mountOptions{cacheSize: defaultCacheSize, cacheDir: defaultCacheDir(), log: logOptions{level: "warn"}}
	var sloppy, fake bool
	var words []string
	cmd := &cobra.Command{
		Use:   "mount.imgfs SOURCE MOUNTPOINT",
		Short: "Mount images, for mount(8) and fstab(5)",
		Long: `Mount the images of SOURCE, as "imgfs mount" does; "none" and "imgfs" stand for the containers-storage of who
mounts.

    mount -t imgfs none /mnt
    none  /mnt               imgfs  ro,allow_other  0 0
    none  /home/user/images  imgfs  user,noauto     0 0`,
		Args:          cobra.ExactArgs(2),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.ran = true
			for word := range strings.SplitSeq(strings.Join(words, ","), ",") {
				err := o.flags.ParseOptions(word)
				if err != nil && (!sloppy || !errors.Is(err, mount.ErrOption)) {
					return usage(cmd, err)
				}
			}
			if err := o.parse(); err != nil {
				return usage(cmd, err)
			}
			if fake {
				return nil
			}
			var sources []string
			if args[0] != "none" && args[0] != "imgfs" {
				sources = args[:1]
			}
			return o.run(cmd.Context(), a, sources, args[1])
		},
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	f := cmd.Flags()
	f.StringArrayVarP(&words, "options", "o", nil, "mount options, as in fstab(5)")
	f.BoolVarP(&sloppy, "sloppy", "s", false, "ignore options that are unknown")
	f.BoolVarP(&fake, "fake", "f", false, "only look at the options")
	f.BoolP("no-mtab", "n", false, "ignored")
	f.BoolP("verbose", "v", false, "ignored")
	f.StringP("namespace", "N", "", "ignored")
	f.StringP("types", "t", "", "ignored")
	return cmd
}
