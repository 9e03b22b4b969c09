package registry

import (
	"errors"
	"slices"

	"github.com/imgfs/imgfs/imgsrc"
)

// repos are the repositories of all who want a blob: one that has the image need not have the blob any more, or give it out.
type repos []string

func (all *repos) add(more ...string) {
	for _, repo := range more {
		if !slices.Contains(*all, repo) {
			*all = append(*all, repo)
		}
	}
}

// elsewhere returns the next that was not asked, if err is that those that were do not give out the blob.
func (all repos) elsewhere(err error, asked []string) (repo string, ok bool) {
	if !errors.Is(err, imgsrc.ErrNotFound) && !errors.Is(err, imgsrc.ErrDenied) {
		return "", false
	}
	i := slices.IndexFunc(all, func(repo string) bool { return !slices.Contains(asked, repo) })
	if i < 0 {
		return "", false
	}
	return all[i], true
}
