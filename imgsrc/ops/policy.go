package ops

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"github.com/imgfs/imgfs/imgsrc"
)

// policy returns the signature policy. A machine that has none accepts everything, as it does everywhere else where
// nobody has said otherwise; that is said once in the log.
func (o *Ops) policy() (*signature.PolicyContext, error) {
	return o.policyOf(&types.SystemContext{SignaturePolicyPath: o.opt.SignaturePolicy})
}

// policyOf is policy on a machine that sys describes. One that somebody has named (also with CONTAINERS_POLICY_JSON) and
// that is not there accepts nothing.
func (o *Ops) policyOf(sys *types.SystemContext) (*signature.PolicyContext, error) {
	if err := policyLinks(sys); err != nil {
		return nil, err
	}
	policy, err := signature.DefaultPolicy(sys)
	if errors.Is(err, configfile.ErrConfigFileNotFound) {
		o.noPolicy.Do(func() {
			o.log.Info("this machine has no signature policy (policy.json): every image may be pushed, pulled and loaded")
		})
		policy, err = &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	if err != nil {
		return nil, fail(imgsrc.ErrDenied, "reading the signature policy: %s", err)
	}
	return signature.NewPolicyContext(policy)
}

// policyLinks fails for a policy.json that is a symbolic link to nothing: the library would go on as if nobody had said
// anything, and to whoever made the link the policy is in force.
func policyLinks(sys *types.SystemContext) error {
	if sys.SignaturePolicyPath != "" {
		return nil // which must be there
	}
	paths, err := configfile.GetSearchPaths(&configfile.File{
		Name: "policy", Extension: "json", DoNotLoadDropInFiles: true, EnvironmentName: "CONTAINERS_POLICY_JSON",
		RootForImplicitAbsolutePaths: sys.RootForImplicitAbsolutePaths,
	})
	if err != nil {
		return fail(imgsrc.ErrDenied, "looking for the signature policy: %s", err)
	}
	for _, path := range paths.MainFiles {
		switch _, err := os.Stat(path); {
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			continue // the library says so, if it comes to it
		}
		if _, err := os.Lstat(path); err == nil {
			return fail(imgsrc.ErrDenied, "reading the signature policy: %s is a symbolic link that leads nowhere", quote(path))
		}
	}
	return nil
}

// allowed fails if the signature policy does not let an image through.
func (o *Ops) allowed(ctx context.Context, src *source) error {
	policy, err := o.policy()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	return permitted(ctx, policy, src)
}

// allowedMember fails if the policy does not let an image of an index through that another source of the mount has. One
// of the index's own source is judged by the index's names, as the library and so podman does it: who lets an index through
// means all of it. That an index can be completed from elsewhere is peculiar to a mount of several sources; what is there
// has scopes of its own, which nobody has spoken for by allowing the index.
func (o *Ops) allowedMember(ctx context.Context, member imgsrc.Held) error {
	return o.allowed(ctx, &source{held: member, reading: func() func() { return func() {} }})
}
