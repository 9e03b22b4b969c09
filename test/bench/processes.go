package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func processes() map[string]bool {
	all := map[string]bool{}
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		all[name] = true
	}
	return all
}

// newProcess returns the directory in /proc of a process called name that was not there before.
func newProcess(before map[string]bool, name string) string {
	for dir := range processes() {
		text, _ := os.ReadFile(filepath.Join(dir, "comm")) // at most 15 bytes
		if comm := strings.TrimSpace(string(text)); !before[dir] && comm != "" && strings.HasPrefix(name, comm) {
			return dir
		}
	}
	return ""
}

func rss(process string) string {
	status, _ := os.ReadFile(filepath.Join(process, "status"))
	for line := range strings.Lines(string(status)) {
		if size, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kb int
			if _, err := fmt.Sscan(size, &kb); err == nil {
				return fmt.Sprintf("%d MiB", kb>>10)
			}
		}
	}
	return "?"
}
