package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set when a release is built: -ldflags "-X main.version=v1.2.3".
var version string

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.stdout, buildVersion())
			return err
		},
	}
}

func buildVersion() string {
	info, _ := debug.ReadBuildInfo() // nil if there is none
	return versionText(version, info)
}

// versionText says what was built, from what, with what: "imgfs v1.2.3 (commit 0123456789ab, go1.26 linux/amd64)". info
// is nil if the program has none.
func versionText(version string, info *debug.BuildInfo) string {
	commit := ""
	if info != nil {
		if version == "" && info.Main.Version != "" {
			version = info.Main.Version
		}
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		if revision := settings["vcs.revision"]; revision != "" {
			commit = "commit " + revision[:min(12, len(revision))]
			if settings["vcs.modified"] == "true" {
				commit += " with changes"
			}
			commit += ", "
		}
	}
	if version == "" {
		version = "(devel)"
	}
	return fmt.Sprintf("imgfs %s (%s%s %s/%s)", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
