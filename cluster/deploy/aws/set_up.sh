#!/usr/bin/env bash
# Makes in an AWS account what ray_cluster.yaml names: two roles, a repository with the image, and
# the file with its words in capitals replaced. It may be typed again.
#   REGION=us-east-1 BUCKET=cells SUBNET_ID=subnet-1 SECURITY_GROUP_ID=sg-1 \
#     bash cluster/deploy/aws/set_up.sh cells_cluster.yaml
set -euo pipefail
output=${1:?name the file to write, such as cells_cluster.yaml}
: "${REGION:?}" "${BUCKET:?}" "${SUBNET_ID:?}" "${SECURITY_GROUP_ID:?}"
root=$(cd "$(dirname "$0")/../../.." && pwd)
image=$(sed -n 's|^  image: .*/\(.*\)$|\1|p' "$root/ray_cluster.yaml")

ACCOUNT=$(aws sts get-caller-identity --query Account --output text)
# Docker, and a driver for CUDA 13. The newest of today; a later `ray up` keeps it.
AMI_ID=${AMI_ID:-$(aws ssm get-parameter --region "$REGION" --query Parameter.Value --output text \
  --name /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id)}

fill() {
  sed "s/SECURITY_GROUP_ID/$SECURITY_GROUP_ID/g; s/SUBNET_ID/$SUBNET_ID/g; s/AMI_ID/$AMI_ID/g
    s/ACCOUNT/$ACCOUNT/g; s/REGION/$REGION/g; s/BUCKET/$BUCKET/g" "$root/$1"
}

for role in head worker; do
  name=retinaray-$role
  if ! aws iam get-role --role-name $name > /dev/null 2>&1; then
    aws iam create-role --role-name $name \
      --assume-role-policy-document "$(fill cluster/deploy/aws/trust.json)"
    aws iam create-instance-profile --instance-profile-name $name
    aws iam add-role-to-instance-profile --instance-profile-name $name --role-name $name
  fi
  aws iam put-role-policy --role-name $name --policy-name work \
    --policy-document "$(fill cluster/deploy/aws/worker.json)"
done
aws iam put-role-policy --role-name retinaray-head --policy-name nodes \
  --policy-document "$(fill cluster/deploy/aws/head.json)"

registry=$ACCOUNT.dkr.ecr.$REGION.amazonaws.com
aws ecr describe-repositories --region "$REGION" --repository-names retinaray > /dev/null 2>&1 ||
  aws ecr create-repository --region "$REGION" --repository-name retinaray
aws ecr get-login-password --region "$REGION" |
  docker login --username AWS --password-stdin "$registry"
docker build --file "$root/cluster/deploy/Containerfile" --tag "$registry/$image" "$root"
docker push "$registry/$image"

fill ray_cluster.yaml > "$output"
echo "now: ray up $output"
