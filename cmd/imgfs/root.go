package main

import (
	"github.com/spf13/cobra"
)

func newRootCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "imgfs",
		Short: "Container images as files",
		Long: `imgfs puts every container image of a store, a layout, an archive, a Docker engine or a registry
into one directory tree, where ls, cat, jq, grep, diff, cp and rsync read them, and echo tags,
pushes, pulls and loads them.

    imgfs mount /mnt                  the images of podman, buildah and CRI-O
    imgfs mount ./layout /mnt         those of an OCI image layout
    imgfs mount web.tar /mnt          those in an archive
    imgfs mount docker-daemon: /mnt   those of the Docker engine
    imgfs mount --help                all that can be mounted
    cat /mnt/README                   what is where
    imgfs umount /mnt

` + exitHelp,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			a.ran = true
		},
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.AddCommand(
		newMountCommand(a),
		newUmountCommand(),
		newListCommand(a),
		newJobsCommand(a),
		newVersionCommand(a),
	)
	cmd.InitDefaultCompletionCmd()
	cmd.InitDefaultHelpCmd()
	for _, c := range cmd.Commands() {
		if c.Name() == "help" {
			knowTopics(c)
		}
		for _, shell := range c.Commands() {
			if shell.Name() == "powershell" {
				c.RemoveCommand(shell) // there is no FUSE where it is at home
			}
		}
	}
	return cmd
}

// knowTopics makes help fail for a command that there is not.
func knowTopics(help *cobra.Command) {
	show := help.Run
	help.Run, help.RunE = nil, func(c *cobra.Command, args []string) error {
		if _, _, err := c.Root().Find(args); err != nil {
			return usage(c.Root(), err)
		}
		show(c, args)
		return nil
	}
}
