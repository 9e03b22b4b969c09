package ops

import (
	"io"
	"strings"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"go.podman.io/storage/pkg/unshare"
	"go.yaml.in/yaml/v3"

	"github.com/imgfs/imgfs/imgsrc"
)

// mayKeep fails if registries.d gives the signatures that a signer makes no place, which is better known before a push than
// after it: an image without a signature would stay there. Errors: imgsrc.ErrUnsupported; those of reading the files.
func (s *signer) mayKeep(sys *types.SystemContext, to types.ImageReference) error {
	if s.file != "" {
		attached, err := sigstoreAttachments(sys, to)
		if err != nil || attached {
			return err
		}
		return fail(imgsrc.ErrUnsupported, "sign-by=%s: registries.d does not let sigstore signatures be stored with %s: write `use-sigstore-attachments: true` for it there",
			sigstorePrefix, repositoryOf(to))
	}
	lookaside, err := docker.SignatureStorageBaseURL(sys, to, true)
	if err != nil {
		return err
	}
	if lookaside.Scheme != "file" {
		return fail(imgsrc.ErrUnsupported, "sign-by=: registries.d keeps signatures of %s at %s, which cannot be written to: write a `lookaside-staging: file:///DIR` for it there",
			repositoryOf(to), lookaside.Redacted())
	}
	return nil
}

func repositoryOf(to types.ImageReference) string { return to.DockerReference().Name() }

// registriesD is what counts here of a file of registries.d
// (https://github.com/containers/image/blob/main/docs/containers-registries.d.5.md).
type registriesD struct {
	Default struct {
		Attachments *bool `yaml:"use-sigstore-attachments"`
	} `yaml:"default-docker"`
	Docker map[string]struct {
		Attachments *bool `yaml:"use-sigstore-attachments"`
	} `yaml:"docker"`
}

// sigstoreAttachments says whether registries.d lets signatures be stored beside an image: what it says of the closest
// namespace that it says it of, else by default. The library knows, and tells only when the image has been stored; that two
// files must not speak of the same namespace it says before.
func sigstoreAttachments(sys *types.SystemContext, to types.ImageReference) (bool, error) {
	said := map[string]bool{}
	const byDefault = ""
	files := configfile.File{
		Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true,
		UserId: unshare.GetRootlessUID(), CustomConfigFileDropInDirectory: sys.RegistriesDirPath,
		RootForImplicitAbsolutePaths: sys.RootForImplicitAbsolutePaths,
	}
	for item, err := range configfile.Read(&files) {
		if err != nil {
			return false, err
		}
		text, err := io.ReadAll(item.Reader)
		if err != nil {
			return false, err
		}
		var file registriesD
		if err := yaml.Unmarshal(text, &file); err != nil {
			return false, fail(imgsrc.ErrInvalid, "reading %s: %s", item.Name, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if file.Default.Attachments != nil {
			said[byDefault] = *file.Default.Attachments
		}
		for namespace, its := range file.Docker {
			if its.Attachments != nil {
				said[namespace] = *its.Attachments
			}
		}
	}
	namespaces := append([]string{to.PolicyConfigurationIdentity()}, to.PolicyConfigurationNamespaces()...)
	for _, namespace := range append(namespaces, byDefault) {
		if yes, ok := said[namespace]; ok {
			return yes, nil
		}
	}
	return false, nil
}
